//! `hapax check`: everything that is wrong with a config, its modules and, on request, its servers.

mod rights;
mod servers;

use std::fmt::Write as _;
use std::process::ExitCode;

use super::output::{clean, count, indented, say, size, tell};
use super::{ConfigArg, USAGE};
use crate::config::{Config, ConsumerConfig};
use crate::guest::cache::{ModuleCache, hex};
use crate::guest::compile::Compiler;
use crate::guest::engine::{Engine, EngineSettings};
use crate::guest::inspect::{ImportStatus, Inspection, NeededGrant};
use crate::guest::module::{CONTRACT, Module};
use crate::host::consumer_context;

pub(super) const HELP: &str = "\
Examples:
  hapax check -c hapax.toml            the file and its modules; touches no server
  hapax check -c hapax.toml --connect  also servers, rights, tables and queues; changes nothing there

Standard error has what is wrong with the config, standard output what was found about consumers and servers; lines
that begin with `problem:` count.

Exit codes: 0 all is well (warnings and notes included), 1 there are problems, 2 the config has errors.";

/// Say what is wrong with a config, its modules and its servers, all at once
///
/// Config errors come with file, line, column and what was expected. Each module is compiled (into the cache that `hapax
/// run` uses), link-checked and started; its world, imports and digest are shown, and which of its imports the grants
/// serve. With --connect, servers are asked for their versions, databases for tables, rights and pending migrations, and
/// the broker for the queues; for each missing right the command that grants it is printed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Also ask the servers
    #[arg(long)]
    connect: bool,
}

/// What was found so far: text for standard output, and how much of it is a problem.
#[derive(Debug, Default)]
pub(super) struct Report {
    text: String,
    problems: u64,
}

impl Report {
    /// A line that something begins with.
    fn heading(&mut self, text: &str) {
        let gap = if self.text.is_empty() { "" } else { "\n" };
        // Writing to a String cannot fail; nor below.
        let _ = writeln!(self.text, "{gap}{text}");
    }

    /// Something found, under a label.
    fn fact(&mut self, label: &str, text: &str) {
        for (index, line) in text.lines().enumerate() {
            let label = if index == 0 { label } else { "" };
            let _ = writeln!(self.text, "{}", format!("  {label:<13} {line}").trim_end());
        }
    }

    /// Something to mend, and how.
    fn problem(&mut self, text: &str, remedy: Option<&str>) {
        self.problems += 1;
        let _ = writeln!(self.text, "  problem: {}", indented(text, 11).trim_start());
        if let Some(remedy) = remedy {
            let _ = writeln!(self.text, "    do: {}", indented(remedy, 8).trim_start());
        }
    }

    /// Something to know.
    fn note(&mut self, text: &str) {
        let _ = writeln!(self.text, "  note: {}", indented(text, 8).trim_start());
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Some(config) = super::load(&args.config.config) else { return Ok(ExitCode::from(USAGE)) };
    let mut report = Report::default();
    modules(&config, &mut report).await;
    if args.connect {
        servers::check(&config, &mut report).await;
    }
    let consumers = count(config.consumers.len() as u64, "consumer");
    say!("{}: {consumers}\n\n{}", config.path.display(), report.text)?;
    match report.problems {
        0 => {
            let unasked = if args.connect { "" } else { " (servers were not asked: --connect does that)" };
            say!("no problems{unasked}")?;
            Ok(ExitCode::SUCCESS)
        }
        problems => {
            say!("{}", count(problems, "problem"))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Loads every module, and compares it with its consumer's grants.
async fn modules(config: &Config, report: &mut Report) {
    let memory = config.consumers.iter().map(|consumer| consumer.limits.memory).max().unwrap_or(64 << 20);
    // One at a time is alive.
    let engine = Engine::new(EngineSettings { max_instances: 2, memory_per_instance: memory });
    let cache = Compiler::current_exe()
        .map_err(|error| error.to_string())
        .and_then(|compiler| ModuleCache::open(&config.module_cache.dir, compiler).map_err(|error| error.to_string()));
    let (engine, cache) = match (engine, cache) {
        (Ok(engine), Ok(cache)) => (engine, cache),
        (engine, cache) => {
            report.heading("modules");
            let errors = engine.err().map(|error| error.to_string()).into_iter().chain(cache.err());
            errors.for_each(|error| report.problem(&error, None));
            return;
        }
    };
    for consumer in &config.consumers {
        report.heading(&format!("consumer {}", consumer.name));
        report.fact("queue", &queue(consumer));
        match Module::inspect(&engine, &cache, &consumer.module, consumer.limits.memory).await {
            Ok(inspection) => module(consumer, &inspection, report),
            Err(error) => {
                report.fact("module", &consumer.module.display().to_string());
                report.problem(&error.to_string(), None);
            }
        }
    }
    if config.consumers.is_empty() {
        tell!("hint: [consumers.NAME] with queue, module and grants is what a consumer needs");
    }
}

fn queue(consumer: &ConsumerConfig) -> String {
    use crate::broker::Declare;
    let declare = match consumer.declare {
        Declare::Passive => "must exist",
        Declare::Create => "created where it is missing",
        Declare::None => "not asked about",
    };
    format!("{} ({declare})", consumer.queue)
}

fn module(consumer: &ConsumerConfig, inspection: &Inspection, report: &mut Report) {
    let grants = consumer_context(consumer).grants;
    report.fact("module", &format!("{} ({})", inspection.path.display(), size(inspection.bytes)));
    report.fact("digest", &format!("sha256:{}", hex(&inspection.digest)));
    report.fact(
        "world",
        &match inspection.world {
            Some(world) => format!("hapax:handler/{world}@{CONTRACT}"),
            None => "none of Hapax's".to_owned(),
        },
    );
    let compensates = inspection.world == Some("compensating-handler");
    report.fact("compensation", if compensates { "yes" } else { "no" });
    let imports: Vec<String> =
        inspection.imports.iter().map(|(name, status)| import(consumer, &clean(name), *status)).collect();
    report.fact("imports", if imports.is_empty() { "nothing".to_owned() } else { imports.join("\n") }.as_str());
    let unseen = unseen_grants(consumer);
    if !unseen.is_empty() {
        report.fact("also granted", &unseen.join("\n"));
    }
    if let Some(problem) = &inspection.problem {
        report.problem(&clean(&problem.to_string()), None);
        return;
    }
    for finding in inspection.findings(&grants) {
        report.note(&finding.to_string());
    }
}

/// An import, and what the consumer's grants make of it.
fn import(consumer: &ConsumerConfig, name: &str, status: ImportStatus) -> String {
    let grants = &consumer.grants;
    let granted = |grants: Vec<String>| match grants.is_empty() {
        true => "needs a grant, and has none".to_owned(),
        false => format!("granted {}", grants.join("; ")),
    };
    let status = match status {
        ImportStatus::Provided => "provided".to_owned(),
        ImportStatus::Denied => "links, and every call is refused".to_owned(),
        ImportStatus::Missing => "not known to this host".to_owned(),
        ImportStatus::NeedsGrant(NeededGrant::Tables) => granted(
            grants
                .tables
                .iter()
                .map(|(table, verbs)| {
                    let verbs: Vec<&str> = verbs.iter().map(|verb| rights::word(*verb)).collect();
                    format!("{} ({})", clean(table), verbs.join(", "))
                })
                .collect(),
        ),
        ImportStatus::NeedsGrant(NeededGrant::Publish) => granted(
            grants
                .publish
                .iter()
                .map(|grant| format!("exchange \"{}\" with {}", clean(&grant.exchange), clean(&grant.routing_key)))
                .collect(),
        ),
    };
    format!("{name:<32} {status}")
}

/// Grants that no import gives away: functions inside statements, and config values. Names only: values may be secrets.
fn unseen_grants(consumer: &ConsumerConfig) -> Vec<String> {
    let functions = consumer.grants.functions.iter().map(|name| format!("function {}", clean(name)));
    let values = consumer.grants.config.keys().map(|key| format!("config value {}", clean(key)));
    functions.chain(values).collect()
}
