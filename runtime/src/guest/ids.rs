//! Ids that are derived, never drawn, so that every attempt on every host comes to the same ones.

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Call, Phase};

/// The id of the `ordinal`th message that an attempt publishes. Attempts repeat it; another phase or another generation
/// does not.
pub(crate) fn outbox_id(consumer: &str, call: &Call, ordinal: u32) -> Uuid {
    derive(
        b"outbox",
        &[
            consumer.as_bytes(),
            call.id.as_bytes(),
            phase(&call.phase),
            &call.generation.to_be_bytes(),
            &ordinal.to_be_bytes(),
        ],
    )
}

/// The key under which another system may be called. A redrive repeats it, unless a compensation has taken effect.
pub(crate) fn idempotency_key(consumer: &str, call: &Call, purpose: &str) -> Uuid {
    derive(
        b"idempotency-key",
        &[
            consumer.as_bytes(),
            call.id.as_bytes(),
            purpose.as_bytes(),
            phase(&call.phase),
            &call.compensations.to_be_bytes(),
        ],
    )
}

fn phase(phase: &Phase) -> &'static [u8] {
    match phase {
        Phase::Handle => b"handle",
        Phase::Compensate(_) => b"compensate",
    }
}

/// A version 8 UUID from the SHA-256 of the fields. Each is preceded by its length, so that no two lists of fields look
/// the same.
fn derive(kind: &[u8], fields: &[&[u8]]) -> Uuid {
    let mut hash = Sha256::new_with_prefix(b"hapax");
    for field in std::iter::once(&kind).chain(fields) {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Death;
    use crate::guest::testing::call;

    fn compensating() -> Phase {
        Phase::Compensate(Death { reason: "exhausted".into(), attempts: 5, failure: None })
    }

    #[test]
    fn an_outbox_id_depends_on_all_but_the_attempt() {
        let first = outbox_id("c", &call(), 0);
        assert_eq!(outbox_id("c", &Call { attempt: 4, ..call() }, 0), first);
        assert_eq!(outbox_id("c", &Call { compensations: 1, ..call() }, 0), first);
        assert_ne!(outbox_id("c", &call(), 1), first);
        assert_ne!(outbox_id("d", &call(), 0), first);
        assert_ne!(outbox_id("c", &Call { generation: 1, ..call() }, 0), first);
        assert_ne!(outbox_id("c", &Call { phase: compensating(), ..call() }, 0), first);
        assert_eq!(first.get_version_num(), 8);
    }

    #[test]
    fn an_idempotency_key_survives_a_redrive_but_not_a_compensation() {
        let first = idempotency_key("c", &call(), "charge");
        assert_eq!(idempotency_key("c", &Call { generation: 1, attempt: 2, ..call() }, "charge"), first);
        assert_ne!(idempotency_key("c", &call(), "refund"), first);
        assert_ne!(idempotency_key("c", &Call { compensations: 1, ..call() }, "charge"), first);
        assert_ne!(idempotency_key("c", &Call { phase: compensating(), ..call() }, "charge"), first);
    }

    #[test]
    fn ids_never_change_between_releases() {
        assert_eq!(outbox_id("shop", &call(), 0).to_string(), "b7e051fa-9f71-86e9-93a8-4867637178c2");
    }
}
