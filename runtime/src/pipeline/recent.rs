//! Messages that this process has lately seen completed: their duplicates need neither a lock nor a transaction.
//!
//! Only what has committed comes in, with the digest of its body, so that an answer from here is the one that the inbox
//! would give. What is not here is asked of the inbox, which stays the judge.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::message::{BodyDigest, MessageId};

/// How many are remembered for each consumer: some 3 MB. Duplicates mostly come soon: from a producer that tries again,
/// from a connection that was lost.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(1 << 14).unwrap();

/// The last completed messages of a consumer.
pub struct Recent(Mutex<LruCache<MessageId, BodyDigest>>);

impl Default for Recent {
    fn default() -> Self {
        // Room is made as it is needed: many consumers are idle.
        let mut cache = LruCache::unbounded();
        cache.resize(CAPACITY);
        Self(Mutex::new(cache))
    }
}

impl Recent {
    /// Remembers a message whose completion has committed.
    pub(super) fn completed(&self, id: MessageId, digest: BodyDigest) {
        self.cache().put(id, digest);
    }

    /// True for the same message again. A message with that id and another body is the inbox's to judge.
    pub(super) fn knows(&self, id: &MessageId, digest: BodyDigest) -> bool {
        self.cache().get(id) == Some(&digest)
    }

    fn cache(&self) -> MutexGuard<'_, LruCache<MessageId, BodyDigest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_knows_the_same_body_under_the_same_id_and_forgets_the_oldest() {
        let recent = Recent::default();
        let id = |n: usize| MessageId::new(format!("m{n}")).unwrap();
        let digest = BodyDigest::of(b"body");
        for n in 0..=CAPACITY.get() {
            recent.completed(id(n), digest);
        }
        assert!(recent.knows(&id(1), digest));
        assert!(!recent.knows(&id(0), digest), "there was no room for it");
        assert!(!recent.knows(&id(2), BodyDigest::of(b"another body")));
    }
}
