//! How far it is: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// A line each time so many percent more are done.
const STEP: u64 = 10;

/// Shows how far it is.
pub(crate) struct Progress {
    total: u64,
    bar: Option<ProgressBar>,
    told: u64,
}

impl Progress {
    /// Progress towards `total`.
    pub(crate) fn new(total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40.green/dim} {pos}/{len} ids settled  {elapsed}  {msg}");
            ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { total, bar, told: 0 }
    }

    /// So much is done.
    pub(crate) fn reached(&mut self, done: u64) {
        let percent = done * 100 / self.total.max(1);
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None if percent >= self.told + STEP => {
                self.told = percent / STEP * STEP;
                println!("{percent:>3} %: {done} of {} ids settled", self.total);
            }
            None => {}
        }
    }

    /// Something happened that is worth a line.
    pub(crate) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| println!("{line}")),
            None => println!("{line}"),
        }
    }

    /// What is going on now.
    pub(crate) fn doing(&self, what: &'static str) {
        match &self.bar {
            Some(bar) => bar.set_message(what),
            None => println!("{what}"),
        }
    }

    /// It is over: the bar gives way to what comes next.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}
