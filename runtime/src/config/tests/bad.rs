//! Every bad file with the whole report on it, as users see it (in `snapshots/`).

use super::{MINIMAL, parse, render};

/// The report on a file, under the file itself.
fn report(text: &str) -> String {
    let outcome = match parse(text) {
        Ok((_, warnings)) => format!("(accepted)\n{}", render(&warnings)),
        Err(found) => render(&found),
    };
    format!("{text}\n────────\n{outcome}")
}

/// One test for each bad file: its name says what is reported.
macro_rules! bad {
    ($($name:ident: $text:expr;)*) => {
        $(
            #[test]
            fn $name() {
                insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
                    insta::assert_snapshot!(stringify!($name), report(&$text));
                });
            }
        )*
    };
}

/// The minimal file with more lines for its consumer.
fn consumer(lines: &str) -> String {
    format!("{MINIMAL}{lines}\n")
}

bad! {
    an_empty_file_lacks_its_sections: "";
    broken_syntax_is_reported_with_its_line: "[broker\nurl = \"amqp://localhost\"\n[database]\nurl = 'x\n";
    the_same_consumer_twice_is_a_syntax_error: format!("{MINIMAL}[consumers.orders]\nqueue = \"b\"\n");
    the_same_key_twice_is_a_syntax_error: consumer("queue = \"b\"");
    unknown_keys_are_named_with_what_was_meant: "
[brokers]
url = \"amqp://localhost\"
[broker]
uri = \"amqp://localhost\"
[database]
url = \"mysql://localhost/shop\"
[consumers.orders]
quue = \"orders\"
module = \"orders.wasm\"
retry = { max-attempts = 3, colour = \"red\" }
";
    a_consumer_needs_queue_and_module: "
[broker]
url = \"amqp://localhost\"
[database]
url = \"mysql://localhost/shop\"
[consumers.orders]
";
    wrong_types_are_all_reported: consumer("
message_id = 3
concurrency = \"four\"
grants = \"all\"
reuse = \"yes\"
bindings = [\"shop\"]
limits = { time = 30, memory = 64, sql_rows = 1.5 }
retention = 2026-01-01");
    durations_need_units_and_sense: consumer("
retention = \"forever\"
rescue_after = \"5\"
lock = { ttl = \"200ms\", wait = \"3 parsecs\" }
batch.max_time = \"2h\"");
    sizes_need_units_and_sense: consumer("
limits = { memory = \"64\", sql_bytes = \"1 potato\", outbox_bytes = \"5GiB\" }
prefetch.bytes = \"0B\"");
    numbers_have_ranges: consumer("
concurrency = 0
max_crashes = -1
batch.max_messages = 5000
prefetch.messages = 100000
retry = { max_attempts = 0, multiplier = 0.5, jitter = 1.5 }
mass_failure = { threshold = nan, window = 99999999999999999999999 }");
    words_are_chosen_from_a_list: consumer("
declare = \"pasive\"
isolation = \"serializable\"
retry.mode = \"sometimes\"
lock.on_unavailable = \"paus\"
grants.tables.stock = [\"select\", \"upsert\", \"drop\"]");
    message_id_rules_are_checked: consumer("message_id = [\"properties\", \"header:\", \"json:id\", \"json:/a~b\", \"magic\"]");
    a_message_id_needs_a_rule: consumer("message_id = []");
    a_rule_after_the_body_digest_is_never_reached: consumer("message_id = [\"property\", \"body-digest\", \"header:x\"]");
    partition_rules_are_checked: consumer("partition_by = \"routing_key\"");
    several_lanes_without_partition_are_warned_about: consumer("concurrency = 4");
    hapax_tables_cannot_be_granted: consumer("
[consumers.orders.grants.tables]
hapax_inbox = [\"delete\"]
\"Shop.HAPAX_outbox\" = [\"select\"]
\"*\" = [\"select\"]
\"a.b.c\" = [\"select\"]
'\"Stock\"' = [\"select\"]
stock = []");
    other_grants_are_checked: consumer("
[consumers.orders.grants]
functions = [\"similarity\", \"now()\", \"a.b.c\", 3]
publish = [{ exchange = \"shop\", routing_key = \"stock*\" }, { routing_key = \"a\" }, \"shop\"]
config = { region = 3 }
http = [\"example.org\"]");
    schemes_are_checked: "
[broker]
url = \"amqsp://localhost\"
[lock]
url = \"memcached://localhost\"
[database]
url = \"localhost\"
";
    addresses_are_checked: format!("{}[lock]\nurl = \"local:here\"\n[consumers.b]\nqueue = \"b\"\nmodule = \"b\"\ndatabase = \"sqlite:\"\n\
        [consumers.c]\nqueue = \"c\"\nmodule = \"c\"\ndatabase = \"sqlite::memory:\"\n\
        [consumers.d]\nqueue = \"d\"\nmodule = \"d\"\ndatabase = {{ url = \"sqlite://d.db?mode=rwc\" }}\n\
        [consumers.e]\nqueue = \"e\"\nmodule = \"e\"\ndatabase = 5\n",
        MINIMAL.replace("amqp://localhost/%2f", "amqp:localhost").replace("mysql://localhost", "mysql://localhost:99999"));
    a_host_is_needed: MINIMAL.replace("amqp://localhost/%2f", "amqp:///shop");
    a_password_in_an_address_is_warned_about_and_not_shown: MINIMAL.replace("amqp://", "amqp://shop:hunter2@");
    a_password_in_the_address_of_a_socket_is_not_shown: format!("{MINIMAL}[lock]\nurl = \"redis+unix:///run/redis.sock?pass=hunter2\"\n");
    the_address_of_a_socket_has_a_path: format!("{MINIMAL}[lock]\nurl = \"redis+unix://localhost/run/redis.sock\"\n");
    a_password_given_twice_is_an_error: MINIMAL.replace("[database]", "password = \"hunter3\"\n[database]").replace("amqp://", "amqp://shop:hunter2@");
    a_password_without_use_is_an_error: format!("[lock]\npassword = \"hunter2\"\n{}password = \"hunter2\"\n", MINIMAL.replace("mysql://localhost/shop", "sqlite://x.db")
        .replace("[consumers.orders]", "password = \"hunter2\"\n[consumers.orders]"));
    a_misspelt_password_is_not_shown: MINIMAL.replace("[database]", "pasword = \"hunter2\"\nsecret = 42\n[database]");
    a_password_file_must_be_readable: MINIMAL.replace("[database]", "password = \"file:no/such/file\"\n[database]");
    a_syntax_error_beside_a_password_does_not_show_it: "[broker]\nurl = \"amqp://shop:hunter2@localhost\" x\npassword = \"hunter2\n[database]\npassword = hunter2\n";
    variables_must_be_set_and_closed: consumer("
[consumers.b]
queue = \"${NO_SUCH_VARIABLE}\"
module = \"${HOME\"
concurrency = \"${HOME}\"
partition_by = \"${not a name}\"");
    mistakes_in_the_defaults_are_reported_once: format!("
[defaults]
retry = {{ max_attempt = 3, jitter = 2.0 }}
concurency = 4
{MINIMAL}[consumers.other]
queue = \"other\"
module = \"other.wasm\"
");
    a_value_from_the_defaults_is_blamed_where_it_stands: format!("
[defaults]
retry = {{ initial_interval = \"1h\" }}
{MINIMAL}retry.max_interval = \"1m\"
");
    broker_and_ledger_need_a_file_each: MINIMAL.replace("amqp://localhost/%2f", "embedded:x.db").replace("mysql://localhost/shop", "sqlite://x.db");
    times_must_go_together: consumer("
batch.max_time = \"1m\"
limits = { time = \"25s\", sql_time = \"30s\", sql_lock_time = \"40s\" }
lock = { ttl = \"10s\", wait = \"10s\" }
retry = { initial_interval = \"20m\", max_interval = \"10m\" }
retention = \"5m\"");
    long_attempts_are_warned_about: consumer("
limits.time = \"40m\"
retry = { mode = \"blocking\", max_interval = \"1h\" }");
    sizes_must_go_together: consumer("
prefetch.messages = 10
reuse.memory = \"64MiB\"");
    dead_letters_cannot_go_back_to_their_queue: consumer("dead_letter = { routing_key = \"orders\" }");
    a_dead_letter_copy_needs_a_routing_key: consumer("dead_letter = { exchange = \"dlx\" }\n[consumers.b]\nqueue=\"b\"\nmodule=\"b\"\ndead_letter = true");
    reserved_and_empty_queues_are_refused: format!("{}[consumers.other]\nqueue = \"\"\nmodule = \"\"\n", consumer("declare = \"create\"").replace("queue = \"orders\"", "queue = \"amq.orders\""));
    a_long_queue_name_is_refused: MINIMAL.replace("queue = \"orders\"", &format!("queue = \"{}\"", "x".repeat(256)));
    two_consumers_of_one_queue_are_warned_about: format!("{MINIMAL}[consumers.again]\nqueue = \"orders\"\nmodule = \"again.wasm\"\n");
    consumer_names_are_checked: format!("{MINIMAL}[consumers.\"a b\"]\nqueue = \"b\"\nmodule = \"b\"\n[consumers.c]\nqueue = \"c\"\nmodule = \"c\"\n").replace("[consumers.c]", "[consumers.\"\"]");
    consumers_are_tables: format!("defaults = 3\n{MINIMAL}").replace("[consumers.orders]\nqueue = \"orders\"\nmodule = \"orders.wasm\"", "[consumers]\norders = \"orders.wasm\"");
    no_consumer_is_warned_about: "[broker]\nurl = \"amqp://localhost\"\n[database]\nurl = \"mysql://localhost/shop\"\n";
    sqlite_lanes_are_warned_about: consumer("concurrency = 4\npartition_by = \"body\"\ndatabase = \"sqlite://ledger.db\"");
    the_rest_of_the_file_is_checked: format!("listen = \"localhost\"\ndrain = \"2h\"\nlog = {{ format = \"xml\", level = \"a=b=c\" }}\nmodule_cache = \"dir\"\n{MINIMAL}");
    arguments_must_be_what_amqp_carries: consumer("arguments = { a = 1979-05-27, b = 9223372036854775808, c = nan }");
    columns_count_characters: consumer("\tmodule_ = \"日本語\"\n[consumers.\"日本\"]\n\tqueue = \"日本語\"\n\tmodule = \"m\" # 語\n\tretry = { mode = \"日\", jitter = \"語\" }");
}

#[test]
fn a_missing_file_is_an_error_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.toml");
    let found = super::Config::load(&path).unwrap_err();
    assert_eq!(
        render(&found),
        format!(
            "error: cannot read the config: No such file or directory (os error 2)\n  --> {}\n  = help: name the config file with -c FILE",
            path.display()
        )
    );
    std::fs::write(&path, b"\xff").unwrap();
    assert_eq!(super::Config::load(&path).unwrap_err()[0].message, "the config is not UTF-8");
}
