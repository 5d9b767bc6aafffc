//! Modules exchanged under load: good ones, each with a digest of its own, and bad ones.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hapax_tests::component::{rebuilt, trapping_at_start, with_core_module};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::Felt;
use crate::fleet::{Host, SWAPPED};

/// How long a new module may take to be loaded by every host. A good one has to be compiled first.
const SWAP_LIMIT: Duration = Duration::from_secs(20);

/// How long one that cannot be loaded lies there at most.
const DUD_LIMIT: Duration = Duration::from_secs(5);

/// What the log says when a host does not exchange its module for a new one.
const REFUSED: &str = "new module refused";

/// The file that the hosts watch.
pub(super) struct Modules {
    path: PathBuf,
    /// The component as it was built.
    component: Vec<u8>,
    /// One that loads, and traps when it starts.
    dud: Vec<u8>,
    /// How many were made of it.
    made: u64,
    /// Is what lies there a good one?
    good: bool,
}

impl Modules {
    pub(super) fn new(path: &Path) -> Result<Self> {
        let component = std::fs::read(path).context("reading the handler")?;
        let dud = with_core_module(&component, &trapping_at_start());
        Ok(Self { path: path.to_owned(), component, dud, made: 0, good: true })
    }

    /// Puts a component there that does the same under another digest.
    pub(super) fn put_another(&mut self) -> Result<()> {
        self.made += 1;
        self.good = true;
        self.put(&rebuilt(&self.component, &self.made.to_le_bytes()))
    }

    /// Puts something there that is no module, or traps when it starts.
    fn put_bad(&mut self, which: u32) -> Result<()> {
        self.good = false;
        let half = self.component.len() / 2;
        match which % 4 {
            0 => self.put(&[]),
            1 => self.put(b"no module"),
            2 => self.put(&self.dud),
            _ => self.put(&self.component[..half]),
        }
    }

    /// Exchanges the module so many times, several a second.
    pub(super) async fn swap(&mut self, hosts: &[Host], times: u32, seed: u64) -> Result<Felt> {
        let mut random = StdRng::seed_from_u64(seed);
        let before = swapped(hosts);
        for number in 0..times {
            match random.random_bool(0.3) {
                true => self.put_bad(number)?,
                false => self.put_another()?,
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(100..400))).await;
        }
        self.put_dud(hosts).await?;
        self.put_another()?;
        let all = before + hosts.len();
        let loaded = hapax_tests::wait_until(SWAP_LIMIT, "the last module", async || swapped(hosts) >= all).await;
        Ok(loaded.is_ok().into())
    }

    /// Puts one there that loads and traps when it starts, for as long as hosts take to look at it.
    async fn put_dud(&mut self, hosts: &[Host]) -> Result<()> {
        let all = seen(hosts) + hosts.len();
        self.good = false;
        self.put(&self.dud)?;
        // A host that waits for a server may not see it.
        let _ = hapax_tests::wait_until(DUD_LIMIT, "hosts to see the dud", async || seen(hosts) >= all).await;
        Ok(())
    }

    /// Puts a good one there, unless one is.
    pub(super) fn put_good(&mut self) -> Result<()> {
        if self.good { Ok(()) } else { self.put_another() }
    }

    /// As deployments do: by renaming, so that no reader sees half of it.
    fn put(&self, bytes: &[u8]) -> Result<()> {
        let new = self.path.with_extension("new");
        std::fs::write(&new, bytes)?;
        std::fs::rename(new, &self.path).context("renaming the module")
    }
}

/// How often the hosts have exchanged their modules.
fn swapped(hosts: &[Host]) -> usize {
    hosts.iter().map(|host| host.said(SWAPPED)).sum()
}

/// How often the hosts have exchanged their modules, or refused to.
fn seen(hosts: &[Host]) -> usize {
    hosts.iter().map(|host| host.said(SWAPPED) + host.said(REFUSED)).sum()
}
