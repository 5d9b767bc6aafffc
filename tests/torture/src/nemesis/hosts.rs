//! The arm that strikes at hosts.

use std::time::Duration;

use anyhow::{Result, ensure};
use hapax::sabotage::Step;
use hapax_tests::wait_until;

use super::fault::HostFault;
use super::modules::Modules;
use super::{Arm, Felt, START_LIMIT};
use crate::books::{Held, Reader};
use crate::fleet::{Host, Trap, was_killed};
use crate::stage::{DEAD_OF, OLD, ORDERED};

/// How long a host is waited for that is to die or freeze at a step. Some steps come by chance.
const TRAP_LIMIT: Duration = Duration::from_secs(20);

/// How long it may take to hold rows, and then until a handler wants them.
const HOLD_LIMIT: Duration = Duration::from_secs(3);

/// Old rows for retention to find.
const OLD_ROWS: usize = 50;

/// See [the module](self).
pub(super) struct HostsArm<'a> {
    pub(super) hosts: &'a mut [Host],
    /// How many of them are spared.
    pub(super) spared: usize,
    pub(super) modules: &'a mut Modules,
    pub(super) reader: Reader,
}

impl Arm for HostsArm<'_> {
    type Fault = HostFault;

    async fn strike(&mut self, fault: HostFault) -> Result<Felt> {
        let felt = match fault {
            HostFault::Kill { host } => self.kill(host).await?,
            HostFault::Trapped { host, trap, frozen } => self.trap(host, trap, frozen).await?,
            HostFault::Frozen { host, time } => self.freeze(host, time).await?,
            HostFault::Stopped { host } => self.stop(host).await?,
            HostFault::Swaps { times, seed } => self.modules.swap(self.hosts, times, seed).await?,
            HostFault::Redriven => self.redrive().await?,
        };
        for host in &mut *self.hosts {
            ensure!(host.is_running(), "{} ended by itself\n{}", host.name(), host.log_tail());
        }
        Ok(felt)
    }
}

impl HostsArm<'_> {
    fn host(&mut self, number: usize) -> &mut Host {
        let hosts = &mut self.hosts[self.spared..];
        &mut hosts[number % hosts.len()]
    }

    async fn kill(&mut self, host: usize) -> Result<Felt> {
        let host = self.host(host);
        host.kill().await?;
        host.start(None)?;
        Ok(Felt::Yes)
    }

    async fn freeze(&mut self, host: usize, time: Duration) -> Result<Felt> {
        let host = self.host(host);
        host.freeze()?;
        tokio::time::sleep(time).await;
        host.thaw()?;
        Ok(Felt::Yes)
    }

    /// Stops it while somebody holds rows that its handlers want: what they are at cannot be finished then.
    async fn stop(&mut self, number: usize) -> Result<Felt> {
        // One that has just been started may still be waiting for a server.
        self.host(number).wait_consuming(START_LIMIT).await?;
        let held = self.hold_up().await;
        let host = self.host(number);
        host.stop().await?;
        host.start(None)?;
        if let Some(held) = held {
            // If the database goes away meanwhile, it lets go of them by itself.
            let _ = held.release().await;
        }
        Ok(Felt::Yes)
    }

    /// Holds rows, and waits until somebody wants them. The database may be away: then nothing is held.
    async fn hold_up(&self) -> Option<Held> {
        let reader = &self.reader;
        let held = tokio::time::timeout(HOLD_LIMIT, reader.hold_rows()).await.ok()?.ok()??;
        let wanted = async || reader.is_anybody_waiting().await.is_ok_and(|waiting| waiting);
        // If nobody comes in time, the host has nothing that a stop could interrupt.
        let _ = wait_until(HOLD_LIMIT, "somebody to want the rows", wanted).await;
        Some(held)
    }

    /// Starts a host that dies or freezes at a step, and brings the step about.
    async fn trap(&mut self, host: usize, trap: Trap, frozen: Duration) -> Result<Felt> {
        match trap.step() {
            Step::Redriving => return self.trap_redrive(trap).await,
            Step::Rescuing => return self.trap_rescue(host, trap, frozen).await,
            // The database may be away: then there is nothing to forget.
            Step::Forgetting if self.leave_old_rows().await.is_err() => return Ok(Felt::No),
            _ => {}
        }
        let number = host;
        let host = self.host(number);
        host.kill().await?;
        host.start(Some(trap))?;
        if trap.step() == Step::Swapping {
            host.wait_consuming(START_LIMIT).await?;
            self.modules.put_another()?;
        }
        Ok(sprung(self.host(number), trap, frozen).await?.into())
    }

    /// Another host, if there is one, is lost with rows in hand, and stays away: it would rescue them first.
    async fn trap_rescue(&mut self, number: usize, trap: Trap, frozen: Duration) -> Result<Felt> {
        self.host(number).kill().await?;
        let lost = self.host(number + 1);
        if lost.is_running() {
            lost.kill().await?;
        }
        lost.start(Some(Trap::Kill(Step::Owned, 1)))?;
        lost.dies_or_is_killed(TRAP_LIMIT).await?;
        let host = self.host(number);
        host.start(Some(trap))?;
        let felt = sprung(host, trap, frozen).await?;
        self.host(number + 1).start(None)?;
        Ok(felt.into())
    }

    /// The command that redrives dies on the way.
    async fn trap_redrive(&mut self, trap: Trap) -> Result<Felt> {
        let args = ["dead", "redrive", "--consumer", DEAD_OF, "--reason", "compensation-failed", "-n", "3", "--yes"];
        let (end, _) = self.hosts[0].commands().run(&args, Some(trap), START_LIMIT).await?;
        Ok(was_killed(end).into())
    }

    /// Dead letters are handled again, some although they are compensated.
    async fn redrive(&mut self) -> Result<Felt> {
        let mut felt = false;
        for consumer in ORDERED {
            for more in [&["compensation-failed"][..], &["permanent", "--force"], &["exhausted", "--force"]] {
                let mut args = vec!["dead", "redrive", "--consumer", consumer, "-n", "5", "--yes", "--reason"];
                args.extend(more);
                let (_, said) = self.hosts[0].commands().run(&args, None, START_LIMIT).await?;
                felt |= redriven(&said) > 0;
            }
        }
        Ok(felt.into())
    }

    /// Rows that look as if they had been completed long ago; and nobody is about to forget them.
    async fn leave_old_rows(&mut self) -> Result<()> {
        let reader = &self.reader;
        reader.execute("UPDATE hapax_leases SET expires_at = 0 WHERE name LIKE 'retention%'").await?;
        for number in 0..OLD_ROWS {
            let id = reader.literal(&format!("{OLD}{:x}-{number}", rand::random::<u64>()));
            let row = format!("'{}', {id}, 1, 0", ORDERED[0]);
            reader
                .execute(&format!("INSERT INTO hapax_inbox (consumer, message_id, status, updated_at) VALUES ({row})"))
                .await?;
        }
        Ok(())
    }
}

/// How many dead letters the command says that it has redriven: "3 dead letters redriven".
fn redriven(said: &str) -> u64 {
    let counts = said.lines().filter_map(|line| {
        let (number, rest) = line.split_once(' ')?;
        rest.starts_with("dead letter").then(|| number.parse::<u64>().ok())?
    });
    counts.sum()
}

/// Waits for a trap to spring, and starts or thaws the host again. False if it did not.
async fn sprung(host: &mut Host, trap: Trap, frozen: Duration) -> Result<bool> {
    match trap {
        Trap::Kill(..) => {
            let sprung = host.dies_or_is_killed(TRAP_LIMIT).await?;
            host.start(None)?;
            Ok(sprung)
        }
        Trap::Stop(..) if host.freezes(TRAP_LIMIT).await? => {
            tokio::time::sleep(frozen).await;
            host.thaw()?;
            Ok(true)
        }
        Trap::Stop(..) => {
            host.kill().await?;
            host.start(None)?;
            Ok(false)
        }
    }
}
