//! Watches how many deliveries the hosts have in hand: what is unbounded looks no different until there is no memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hapax_tests::vhost::Vhost;
use tokio_util::task::AbortOnDropHandle;

use crate::stage::PREFETCH;

/// How often it looks.
const LOOK: Duration = Duration::from_millis(300);

/// While a subscription is replaced by one with another prefetch count, both have theirs.
const MOST: u64 = 2 * PREFETCH;

/// Looks until it is dropped.
pub(crate) struct Watch {
    most: Arc<AtomicU64>,
    _looking: AbortOnDropHandle<()>,
}

impl Watch {
    /// Begins to look.
    pub(crate) fn on(vhost: Arc<Vhost>) -> Self {
        let most = Arc::<AtomicU64>::default();
        let looking = tokio::spawn({
            let most = most.clone();
            async move {
                loop {
                    // A broker that is away has delivered nothing.
                    if let Ok(unacknowledged) = vhost.unacknowledged_of_channels().await {
                        most.fetch_max(unacknowledged.into_iter().max().unwrap_or(0), Ordering::Relaxed);
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }
        });
        Self { most, _looking: AbortOnDropHandle::new(looking) }
    }

    /// What it has noticed.
    pub(crate) fn found(&self) -> Option<String> {
        let most = self.most.load(Ordering::Relaxed);
        (most > MOST).then(|| format!("{most} deliveries were in hand of one subscription, and {MOST} may be"))
    }
}
