//! `#[handler]` and `#[compensation]`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{Error, FnArg, ItemFn, Type};

/// Which export a function becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Handler,
    Compensation,
}

impl Role {
    fn attribute(self) -> &'static str {
        match self {
            Self::Handler => "#[handler]",
            Self::Compensation => "#[compensation]",
        }
    }
}

/// The function, unchanged, and what makes it an export; or a compile error beside the function.
pub(crate) fn expand(role: Role, attribute: TokenStream, item: TokenStream) -> TokenStream {
    let function: ItemFn = match syn::parse2(item.clone()) {
        Ok(function) => function,
        Err(error) => {
            let message = format!("{} goes on a function: {error}", role.attribute());
            return Error::new(error.span(), message).to_compile_error();
        }
    };
    let export = export(role, &attribute, &function).unwrap_or_else(|error| error.to_compile_error());
    quote! { #item #export }
}

fn export(role: Role, attribute: &TokenStream, function: &ItemFn) -> Result<TokenStream, Error> {
    if !attribute.is_empty() {
        return Err(Error::new(attribute.span(), format!("{} takes no arguments", role.attribute())));
    }
    refuse_what_cannot_be_called(role, function)?;
    let name = &function.sig.ident;
    let vis = &function.vis;
    let mut types = function.sig.inputs.iter().map(parameter_type).collect::<Result<Vec<_>, _>>()?;
    let death = match role {
        Role::Handler => None,
        Role::Compensation => types.pop(),
    };
    let decoded = types.iter().enumerate().map(|(index, ty)| decode(role, index, ty));
    let mut arguments: Vec<_> = types.iter().enumerate().map(|(index, ty)| argument(index, ty)).collect();
    if let Some(ty) = death {
        arguments.push(match ty {
            Type::Reference(_) => quote! { &death },
            _ => quote! { death },
        });
    }
    let call = quote_spanned! { function.sig.output.span()=>
        ::hapax_guest::__private::Returned::into_result(#name(#(#arguments),*))
    };
    let body = quote! { #(#decoded)* #call };
    let implementation = match role {
        Role::Handler => quote! {
            impl ::hapax_guest::Handler for #name {
                fn handle(message: ::hapax_guest::Message) -> ::core::result::Result<(), ::hapax_guest::Failure> {
                    #body
                }
            }
            #[cfg(target_arch = "wasm32")]
            ::hapax_guest::__export_handler!(#name);
        },
        Role::Compensation => quote! {
            impl ::hapax_guest::Compensation for #name {
                fn compensate(
                    message: ::hapax_guest::Message,
                    death: ::hapax_guest::Death,
                ) -> ::core::result::Result<(), ::hapax_guest::Failure> {
                    #body
                }
            }
            #[cfg(target_arch = "wasm32")]
            ::hapax_guest::__export_compensation!(#name);
        },
    };
    // The type shares the function's name: types and functions have separate name spaces.
    Ok(quote! {
        #[doc(hidden)]
        #[allow(non_camel_case_types, missing_docs, clippy::allow_attributes)]
        #vis enum #name {}
        #[allow(unused_variables, clippy::allow_attributes)]
        const _: () = { #implementation };
    })
}

fn refuse_what_cannot_be_called(role: Role, function: &ItemFn) -> Result<(), Error> {
    let attribute = role.attribute();
    let signature = &function.sig;
    if let Some(token) = &signature.asyncness {
        return Err(Error::new(token.span(), format!("{attribute} is called synchronously: remove `async`")));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new(signature.generics.span(), format!("{attribute} cannot be generic")));
    }
    if role == Role::Compensation && signature.inputs.is_empty() {
        let message = "#[compensation] takes the message's body and, last, the `Death`: `(order: Order, death: Death)`";
        return Err(Error::new(signature.paren_token.span.join(), message));
    }
    Ok(())
}

fn parameter_type(parameter: &FnArg) -> Result<&Type, Error> {
    match parameter {
        FnArg::Typed(parameter) => Ok(&parameter.ty),
        FnArg::Receiver(receiver) => {
            Err(Error::new(receiver.span(), "a method cannot be exported: use a free function"))
        }
    }
}

/// `let a0 = …;`: the owned value behind one parameter.
fn decode(role: Role, index: usize, ty: &Type) -> TokenStream {
    let variable = format_ident!("argument_{index}");
    let owned = owned(ty);
    let failed = match role {
        Role::Handler => quote! { ::core::result::Result::Err(failure) },
        Role::Compensation => quote! { ::hapax_guest::__private::nothing_to_undo(failure, &death) },
    };
    // Spanned, so that the compiler's complaint about a type that cannot be decoded points at the parameter.
    let decoded = quote_spanned! { ty.span()=> (&::hapax_guest::__private::Tag::<#owned>::new()).decode(&message) };
    quote! {
        let #variable = {
            #[allow(unused_imports, clippy::allow_attributes)]
            use ::hapax_guest::__private::{ByFromMessage as _, ByJson as _};
            match #decoded {
                ::core::result::Result::Ok(value) => value,
                ::core::result::Result::Err(failure) => return #failed,
            }
        };
    }
}

fn argument(index: usize, ty: &Type) -> TokenStream {
    let variable = format_ident!("argument_{index}");
    match ty {
        Type::Reference(reference) if reference.mutability.is_some() => quote! { &mut #variable },
        Type::Reference(_) => quote! { &#variable },
        _ => quote! { #variable },
    }
}

/// The owned type that a reference borrows from.
fn owned(ty: &Type) -> TokenStream {
    let Type::Reference(reference) = ty else { return quote! { #ty } };
    match &*reference.elem {
        Type::Slice(slice) => {
            let element = &slice.elem;
            quote_spanned! { ty.span()=> ::std::vec::Vec<#element> }
        }
        Type::Path(path) if path.path.is_ident("str") => quote_spanned! { ty.span()=> ::std::string::String },
        other => quote! { #other },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(role: Role, item: &str) -> String {
        expand(role, TokenStream::new(), item.parse().unwrap()).to_string()
    }

    #[test]
    fn a_function_stays_and_gets_a_type_of_its_name() {
        let code =
            expanded(Role::Handler, "pub fn f(order: Order, message: &Message) -> Result<(), Failure> { Ok(()) }");
        assert!(code.starts_with("pub fn f"), "{code}");
        assert!(code.contains("pub enum f"), "{code}");
        assert!(code.contains("f (argument_0 , & argument_1)"), "{code}");
    }

    #[test]
    fn the_last_parameter_of_a_compensation_is_the_death() {
        let code = expanded(Role::Compensation, "fn undo(text: &str, death: &Death) {}");
        assert!(code.contains("undo (& argument_0 , & death)"), "{code}");
        assert!(code.contains("String"), "{code}");
    }

    #[test]
    fn what_cannot_be_called_is_a_compile_error_that_says_so() {
        for (role, item, complaint) in [
            (Role::Handler, "async fn f() {}", "remove `async`"),
            (Role::Handler, "fn f<T>(t: T) {}", "cannot be generic"),
            (Role::Handler, "fn f(&self) {}", "use a free function"),
            (Role::Handler, "struct S;", "goes on a function"),
            (Role::Compensation, "fn f() {}", "takes the message's body"),
        ] {
            let code = expanded(role, item);
            assert!(code.contains("compile_error") && code.contains(complaint), "{item}: {code}");
        }
    }
}
