//! What a run measures beside drains: each fills a section below the table.

use anyhow::{Context as _, Result};

use crate::programs::Programs;
use crate::report::Section;
use crate::sizing::{batches, load, prefetch};
use crate::stage::Stage;
use crate::{consumers, guest, inbox, latency};

/// What every measurement needs to know of its run.
pub(crate) struct Run<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) programs: &'a Programs,
    /// Messages of a drain.
    pub(crate) messages: u64,
    /// Rows of a large inbox.
    pub(crate) inbox_rows: u64,
    pub(crate) quick: bool,
}

/// One section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extra {
    Latency,
    Consumers,
    Guest,
    Batches,
    Load,
    Prefetch,
    Inbox,
}

impl Extra {
    /// In the order in which a run measures them.
    pub(crate) const ALL: [Self; 7] =
        [Self::Latency, Self::Consumers, Self::Guest, Self::Batches, Self::Load, Self::Prefetch, Self::Inbox];

    /// The heading of its section, and its name for `--only`.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Consumers => "four consumers",
            Self::Guest => "the guest alone",
            Self::Batches => "sizing: lanes and batches",
            Self::Load => "sizing: latency under load",
            Self::Prefetch => "sizing: prefetch",
            Self::Inbox => "a large inbox",
        }
    }

    /// Is it a matter of minutes?
    pub(crate) const fn is_long(self) -> bool {
        matches!(self, Self::Batches | Self::Load | Self::Prefetch | Self::Inbox)
    }

    /// Does it belong into that round? Latency is worth three looks where there is time for them; what the others find
    /// hardly differs from round to round, or takes too long.
    pub(crate) fn is_in_round(self, round: u16, quick: bool) -> bool {
        round == 1 || (self == Self::Latency && !quick)
    }

    /// Measures it once.
    ///
    /// # Errors
    /// When something does not do exactly what it should.
    pub(crate) async fn measure(self, run: &Run<'_>) -> Result<Section> {
        let title = self.title();
        let section = match self {
            Self::Latency => latency::measure(run, title).await,
            Self::Consumers => consumers::measure(run, title).await,
            Self::Guest => guest::measure(run, title).await,
            Self::Batches => batches::measure(run, title).await,
            Self::Load => load::measure(run, title).await,
            Self::Prefetch => prefetch::measure(run, title).await,
            Self::Inbox => inbox::measure(run, title).await,
        };
        section.with_context(|| format!("measuring {title}"))
    }
}
