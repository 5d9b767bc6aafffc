//! The processes of a variant, measured and ended together.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hapax_tests::proc::{Launch, Process};

use crate::programs::Programs;
use crate::stage::Place;
use crate::variant::{Consumer, Program, Variant, hapax_toml};
use crate::worker::QUEUE;
use hapax_tests::usage::{cpu_micros, peak_memory};

/// How long an orderly end may take.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// The consumer of most configs.
pub(crate) const CONSUMER: &str = "reduce-stock";

/// Processes that drain one queue.
pub(crate) struct Fleet {
    processes: Vec<Process>,
    /// Hapax stops in good order; the others are killed, as nobody has taught them better.
    orderly: bool,
}

impl Fleet {
    /// Starts a variant on a place.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(variant: &Variant, place: &Place, programs: &Programs) -> Result<Self> {
        let processes = match &variant.program {
            Program::Hapax(hapax) => {
                let module = programs.module(hapax.handler)?;
                let consumer = Consumer { name: CONSUMER, queue: QUEUE, module: &module, hapax, shape: variant.shape };
                let config = hapax_toml(place, &[consumer]);
                return Self::hapax(&variant.name, place, &config, hapax.hosts);
            }
            Program::Script { language, workers, processes } => {
                let launch = programs.script(*language, script_args(place, *workers, *processes))?;
                vec![launch.name(&variant.name).start()?]
            }
            worker => {
                let exe = std::env::current_exe().context("finding this program's own path")?;
                vec![Launch::program(exe, worker_args(worker, place)).name(&variant.name).start()?]
            }
        };
        Ok(Self { processes, orderly: false })
    }

    /// Starts that many hosts with one config.
    ///
    /// # Errors
    /// When one cannot be started.
    pub(crate) fn hapax(name: &str, place: &Place, config: &str, hosts: u16) -> Result<Self> {
        let file = place.folder.path().join("hapax.toml");
        std::fs::write(&file, config)?;
        let start = |_| Launch::hapax(["run".into(), "-c".into(), file.clone().into_os_string()]).name(name).start();
        Ok(Self { processes: (0..hosts).map(start).collect::<Result<_>>()?, orderly: true })
    }

    /// CPU time so far, descendants included, in microseconds.
    ///
    /// # Errors
    /// When the system does not say.
    pub(crate) fn cpu_micros(&self) -> Result<u64> {
        self.processes.iter().map(|process| cpu_micros(process.pid())).sum()
    }

    /// Peak resident memory, descendants included, in bytes.
    ///
    /// # Errors
    /// When the system does not say.
    pub(crate) fn peak_memory(&self) -> Result<u64> {
        self.processes.iter().map(|process| peak_memory(process.pid())).sum()
    }

    /// # Errors
    /// When a process has ended.
    pub(crate) fn check_running(&mut self) -> Result<()> {
        for process in &mut self.processes {
            if let Some(status) = process.try_wait()? {
                bail!("{} ended ({status})\n{}", process.name(), process.log_tail());
            }
        }
        Ok(())
    }

    /// Freezes all of it.
    ///
    /// # Errors
    /// When a process has ended.
    pub(crate) fn freeze(&mut self) -> Result<()> {
        self.processes.iter_mut().try_for_each(Process::sigstop)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When a process has ended.
    pub(crate) fn thaw(&mut self) -> Result<()> {
        self.processes.iter_mut().try_for_each(Process::sigcont)
    }

    /// Ends it.
    ///
    /// # Errors
    /// When a host does not stop in good order.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        for process in &mut self.processes {
            if !self.orderly {
                process.kill9_tree().await?;
                continue;
            }
            let status = process.terminate(STOP_LIMIT).await?;
            ensure!(
                status.success(),
                "{} did not stop in good order: {status}\n{}",
                process.name(),
                process.log_tail()
            );
        }
        Ok(())
    }

    /// The ends of the logs.
    pub(crate) fn log_tail(&self) -> String {
        self.processes.iter().map(Process::log_tail).collect::<Vec<_>>().join("\n")
    }
}

/// Where a bare consumer says how far it is.
pub(crate) fn counter_file(place: &Place) -> std::path::PathBuf {
    place.folder.path().join("counter")
}

fn worker_args(program: &Program, place: &Place) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["worker".into(), "--amqp".into(), place.vhost.url().into()];
    let (kind, workers) = match program {
        Program::Bare { each } => {
            args.extend(["--counter".into(), counter_file(place).into_os_string()]);
            args.push(if *each { "bare-each".into() } else { "bare-batch".into() });
            return args;
        }
        Program::LookUp { workers } => ("look-up", workers),
        Program::Classic { workers } => ("classic", workers),
        Program::Script { .. } | Program::Hapax(_) => return args,
    };
    args.extend(["--redis".into(), place.locks.url().into(), "--database".into(), (&place.database).into()]);
    args.extend(["--workers".into(), workers.to_string().into(), kind.into()]);
    args
}

fn script_args(place: &Place, workers: u16, processes: u16) -> Vec<OsString> {
    let (workers, processes) = (workers.to_string(), processes.to_string());
    let args = [
        ("--amqp", place.vhost.url()),
        ("--redis", place.locks.url()),
        ("--database", place.database.as_str()),
        ("--workers", &workers),
        ("--processes", &processes),
    ];
    args.into_iter().flat_map(|(name, value)| [name.into(), value.into()]).collect()
}
