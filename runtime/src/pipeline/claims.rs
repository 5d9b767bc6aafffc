//! What a batch owns: the parked rows it locked, and the message ids it claimed.

use std::collections::{HashMap, HashSet};

use super::gather;
use super::member::{Member, Origin, Plan};
use super::records::Scene;
use crate::ledger::Ledger;
use crate::ledger::database::{Connection, DbError};
use crate::ledger::inbox::{Claim, Claimed, Status};
use crate::ledger::parked::{ParkedId, RunToken};
use crate::message::{BodyDigest, MessageId};
use crate::outcome::{Disposition, Outcome};
use crate::sabotage::{self, Breach, Step};

/// Which of the taken rows are still ours.
pub(super) struct Owned(HashMap<RunToken, HashSet<ParkedId>>);

impl Owned {
    /// True for a row that somebody else has moved on since it was taken.
    pub(super) fn lost(&self, member: &Member) -> bool {
        match &member.origin {
            Origin::Delivery { .. } => false,
            Origin::Parked { row, token } => !self.0.get(token).is_some_and(|ids| ids.contains(&row.id)),
        }
    }
}

/// Locks the parked rows of a batch to the end of its transaction.
pub(super) async fn own_rows(
    ledger: &Ledger,
    connection: &mut dyn Connection,
    members: &[Member],
) -> Result<Owned, DbError> {
    let mut wanted: HashMap<RunToken, Vec<ParkedId>> = HashMap::new();
    for member in members {
        if let Origin::Parked { row, token } = &member.origin {
            wanted.entry(*token).or_default().push(row.id);
        }
    }
    let mut owned = HashMap::with_capacity(wanted.len());
    for (token, ids) in wanted {
        owned.insert(token, ledger.lock_running(connection, token, &ids).await?.into_iter().collect());
        sabotage::at(Step::Owned);
    }
    Ok(Owned(owned))
}

/// What the claims of a batch found: one answer for each id, however many members carry it.
pub(super) struct Claims(HashMap<MessageId, ClaimedId>);

struct ClaimedId {
    found: Claimed,
    /// The body of the member that claimed it.
    digest: BodyDigest,
    /// The row key of the member that claimed it.
    leader: ParkedId,
    /// That member was given back, and so must its copies be.
    given_back: bool,
}

/// Claims every id of a batch that it does not own already, in one statement. Of several members with one id the first
/// claims for all. A stored delivery that was lost claims nothing: whoever has it now does.
pub(super) async fn claim(
    ledger: &Ledger,
    connection: &mut dyn Connection,
    scene: &Scene<'_>,
    members: &[Member],
    owned: &Owned,
) -> Result<Claims, DbError> {
    let mut seen = HashSet::with_capacity(members.len());
    let mut leaders = Vec::with_capacity(members.len());
    let mut claims = Vec::with_capacity(members.len());
    let ordered = gather::in_order(members).into_iter().map(|index| &members[index]);
    for member in ordered.filter(|member| member.claims() && !owned.lost(member)) {
        let Some(id) = &member.carried.id else { continue };
        if !seen.insert(id) {
            continue;
        }
        let park = member.plan == Plan::ParkFirst;
        leaders.push(member);
        claims.push(Claim {
            id: id.clone(),
            status: if park { Status::Parked } else { Status::Completed },
            parked_id: park.then_some(member.carried.row_id),
            digest: Some(member.carried.digest),
            module: Some(scene.module),
        });
    }
    let found = ledger.claim(connection, scene.consumer, &claims).await?;
    let answers = claims.into_iter().zip(leaders).zip(found).map(|((claim, leader), found)| {
        let (digest, leader) = (leader.carried.digest, leader.carried.row_id);
        (claim.id, ClaimedId { found, digest, leader, given_back: false })
    });
    Ok(Claims(answers.collect()))
}

impl Claims {
    /// None if the member's claim is new and its own: it is to be run.
    pub(super) fn outcome(&self, member: &Member) -> Option<Outcome> {
        let claimed = self.0.get(member.carried.id.as_ref()?)?;
        let digest = member.carried.digest;
        let same = match &claimed.found {
            Claimed::New if claimed.leader == member.carried.row_id => return None,
            Claimed::New if claimed.given_back => return Some(Outcome::NotReached),
            Claimed::New => claimed.digest == digest,
            Claimed::Existing(_) if sabotage::broken(Breach::NoUniqueKey) => return None,
            Claimed::Existing(row) => row.is_same_message(digest),
        };
        Some(if same { Outcome::Duplicate } else { Outcome::Conflict })
    }

    /// Copies follow their original's fate.
    pub(super) fn follow(&mut self, member: &Member, disposition: &Disposition) {
        if *disposition == Disposition::GiveBack
            && let Some(id) = &member.carried.id
            && let Some(claimed) = self.0.get_mut(id)
        {
            claimed.given_back = true;
        }
    }

    /// True if this member made a new claim, which must be taken back if the member is.
    pub(super) fn is_leader(&self, member: &Member) -> bool {
        let claimed = member.carried.id.as_ref().and_then(|id| self.0.get(id));
        claimed.is_some_and(|claimed| claimed.found == Claimed::New && claimed.leader == member.carried.row_id)
    }
}
