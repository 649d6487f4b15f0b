//! The credentials of one offering in the order of trying them: those with a weight by chance in
//! proportion to it, then those without.

use shared::snapshot::Credential;

use super::{Access, LAST_RESORT_WAITING, Limits};
use crate::dice;
use crate::facts::Now;
use crate::health::{self, Circuit, Fleet, Standing};
use crate::resolve::Found;

/// Most accesses worth keeping: no request makes more attempts.
const MOST: usize = Limits::within(0).attempts as usize;

pub(super) enum Pool {
    /// In order; at least one.
    Open(Vec<Access>),
    /// All are shut; of those that are not full, else of all, the one that opens soonest, and when.
    Shut { until_ms: u64, full: bool, access: Access },
    /// There is none to use.
    Empty,
}

pub(super) fn accesses(found: &Found<'_>, environment: Option<&str>, fleet: &Fleet, now: Now, seed: u64) -> Pool {
    let provider = found.provider;
    let model = health::model_hash(&found.offering.model);
    let mut open = Vec::new();
    let mut shut: Option<((bool, u64), Access)> = None;
    let mut consider = |access: Access| match fleet.standing(&access.circuit, now.mono_ms) {
        Standing::Live | Standing::Probe => open.push(access),
        Standing::Shut { until_ms } => {
            let full = fleet.waiting(&access.circuit) >= LAST_RESORT_WAITING;
            if shut.as_ref().is_none_or(|(best, _)| (full, until_ms) < *best) {
                shut = Some(((full, until_ms), access));
            }
        }
    };
    let access = |credential: Option<&std::sync::Arc<Credential>>| Access {
        credential: credential.cloned(),
        circuit: Circuit::for_model(provider, model, credential.map(|c| &**c)),
    };
    if provider.credentials.is_empty() && provider.vendor.credential_optional {
        consider(access(None));
    }
    for credential in &provider.credentials {
        if !credential.disabled && fits(credential, environment) {
            consider(access(Some(credential)));
        }
    }
    if open.is_empty() {
        return shut.map_or(Pool::Empty, |((full, until_ms), access)| Pool::Shut { until_ms, full, access });
    }
    shuffle(&mut open, seed);
    open.truncate(MOST);
    Pool::Open(open)
}

/// A credential without a tag fits everywhere, and a request without one takes any.
fn fits(credential: &Credential, environment: Option<&str>) -> bool {
    environment.is_none_or(|wanted| credential.environment.is_empty() || *credential.environment == *wanted)
}

/// Draws one after the other without putting back, each in proportion to its weight; once only
/// weightless ones are left, all alike.
fn shuffle(accesses: &mut [Access], seed: u64) {
    let weight = |access: &Access| access.credential.as_ref().map_or(1, |c| u64::from(c.weight));
    for at in 0..accesses.len().saturating_sub(1).min(MOST) {
        let Some(rest) = accesses.get_mut(at..) else { return };
        let total: u64 = rest.iter().map(weight).sum();
        let share = |access: &Access| if total == 0 { 1 } else { weight(access) };
        let mut left = dice::below(if total == 0 { rest.len() as u64 } else { total }, seed, at as u64);
        let drawn = rest.iter().position(|access| {
            let mine = share(access);
            let hit = left < mine;
            left = left.saturating_sub(mine);
            hit
        });
        rest.swap(0, drawn.unwrap_or(0));
    }
}
