//! A sound component of another world: it exports `other:thing/greeter` and imports what no host of Hapax has.
//! Loading it must end in an error that names both.
#![cfg(target_arch = "wasm32")]

mod bindings {
    wit_bindgen::generate!({
        inline: "
            package other:thing@1.2.3;
            interface greeter { greet: func(name: string) -> string; }
            interface wishes { wish: func(text: string); }
            world other { import wishes; export greeter; }
        ",
    });
}

struct WrongWorld;
bindings::export!(WrongWorld with_types_in bindings);

impl bindings::exports::other::thing::greeter::Guest for WrongWorld {
    fn greet(name: String) -> String {
        bindings::other::thing::wishes::wish(&name);
        format!("hello {name}")
    }
}
