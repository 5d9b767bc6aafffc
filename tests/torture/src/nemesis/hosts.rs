//! Faults of hosts, and of the network between them and their servers.

use std::time::Duration;

use anyhow::{Result, ensure};
use hapax::sabotage::Step;

use super::fault::Target;
use super::{Felt, Nemesis, START_LIMIT};
use crate::fleet::{Host, Trap};
use crate::stage::{DEAD_OF, OLD, ORDERED};
use crate::wire::Weather;

/// How long a host is waited for that is to die or freeze at a step. Some steps come by chance.
const TRAP_LIMIT: Duration = Duration::from_secs(20);

/// Old rows for retention to find.
const OLD_ROWS: usize = 50;

impl Nemesis {
    pub(super) async fn kill(&mut self, host: usize) -> Result<Felt> {
        let host = self.host(host);
        host.kill().await?;
        host.start(None)?;
        Ok(Felt::Yes)
    }

    pub(super) async fn freeze(&mut self, host: usize, time: Duration) -> Result<Felt> {
        let host = self.host(host);
        host.freeze()?;
        tokio::time::sleep(time).await;
        host.thaw()?;
        Ok(Felt::Yes)
    }

    pub(super) async fn stop(&mut self, host: usize) -> Result<Felt> {
        let host = self.host(host);
        // One that has just been started may still be waiting for a server.
        host.wait_consuming(START_LIMIT).await?;
        host.stop().await?;
        host.start(None)?;
        Ok(Felt::Yes)
    }

    /// Starts a host that dies or freezes at a step, and brings the step about.
    pub(super) async fn trap(&mut self, host: usize, trap: Trap, frozen: Duration) -> Result<Felt> {
        match trap.step() {
            Step::Redriving => return self.trap_redrive(trap).await,
            Step::Forgetting => self.leave_old_rows().await?,
            _ => {}
        }
        let number = host;
        let host = self.host(number);
        host.kill().await?;
        if trap.step() == Step::Rescuing {
            // Somebody has to be lost first, with rows in hand.
            host.start(Some(Trap::Kill(Step::Owned, 1)))?;
            if !host.dies(TRAP_LIMIT).await? {
                host.kill().await?;
            }
        }
        host.start(Some(trap))?;
        if trap.step() == Step::Swapping {
            host.wait_consuming(START_LIMIT).await?;
            self.modules.put_another()?;
        }
        Ok(sprung(self.host(number), trap, frozen).await?.into())
    }

    /// The command that redrives dies on the way.
    async fn trap_redrive(&mut self, trap: Trap) -> Result<Felt> {
        let args = ["dead", "redrive", "--consumer", DEAD_OF, "--reason", "compensation-failed", "-n", "3", "--yes"];
        let (succeeded, _) = self.hosts[0].command(&args, Some(trap), START_LIMIT).await?;
        Ok((!succeeded).into())
    }

    /// Dead letters are handled again, some although they are compensated.
    pub(super) async fn redrive(&mut self) -> Result<Felt> {
        let mut felt = false;
        for consumer in ORDERED {
            for more in [&["compensation-failed"][..], &["permanent", "--force"], &["exhausted", "--force"]] {
                let mut args = vec!["dead", "redrive", "--consumer", consumer, "-n", "5", "--yes", "--reason"];
                args.extend(more);
                let (_, said) = self.hosts[0].command(&args, None, START_LIMIT).await?;
                felt |= redriven(&said) > 0;
            }
        }
        Ok(felt.into())
    }

    /// Rows that look as if they had been completed long ago.
    async fn leave_old_rows(&mut self) -> Result<()> {
        let reader = &self.stage.reader;
        for number in 0..OLD_ROWS {
            let id = reader.literal(&format!("{OLD}{}-{number}", self.tally.felt.values().sum::<u64>()));
            let row = format!("'{}', {id}, 1, 0", ORDERED[0]);
            reader
                .execute(&format!("INSERT INTO hapax_inbox (consumer, message_id, status, updated_at) VALUES ({row})"))
                .await?;
        }
        Ok(())
    }

    pub(super) async fn spoil_network(
        &mut self,
        host: usize,
        target: Target,
        weather: Weather,
        time: Duration,
    ) -> Result<Felt> {
        let wires = &self.host(host).wires;
        let wire = match target {
            Target::Broker => &wires.broker,
            Target::Locks => &wires.lock,
            Target::Database => &wires.database,
        };
        let Some(wire) = wire else { return Ok(Felt::No) };
        wire.set(weather);
        tokio::time::sleep(time).await;
        let touched = wire.touched();
        wire.set(Weather::Fair);
        Ok((touched > 0).into())
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
    let sprung = match trap {
        Trap::Kill(..) => host.dies(TRAP_LIMIT).await?,
        Trap::Stop(..) => host.freezes(TRAP_LIMIT).await?,
    };
    match (sprung, trap) {
        (true, Trap::Stop(..)) => {
            tokio::time::sleep(frozen).await;
            host.thaw()?;
        }
        (true, Trap::Kill(..)) => host.start(None)?,
        (false, _) => {
            ensure!(host.is_running(), "{} ended otherwise\n{}", host.name(), host.log_tail());
            host.kill().await?;
            host.start(None)?;
        }
    }
    Ok(sprung)
}
