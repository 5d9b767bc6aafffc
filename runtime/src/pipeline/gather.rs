//! Which members share a transaction, and in which order they run in it.

use super::member::Member;

/// The order of a run: by partition key, stable, so that rows that several members touch are touched together and in
/// the same order by every lane.
pub(super) fn in_order(members: &[Member]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|&index| members[index].key);
    order
}

/// Groups of members that may share a transaction, in order: those that must be alone are, and no group is larger than
/// `limit`.
pub(super) fn split_lone(members: Vec<Member>, limit: usize) -> impl Iterator<Item = Vec<Member>> {
    let mut groups: Vec<Vec<Member>> = Vec::new();
    let mut last_alone = true;
    for member in members {
        let alone = member.alone;
        match groups.last_mut() {
            Some(group) if !alone && !last_alone && group.len() < limit => group.push(member),
            _ => groups.push(vec![member]),
        }
        last_alone = alone;
    }
    groups.into_iter()
}
