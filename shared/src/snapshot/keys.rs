//! Caller keys by hash. Sharded by the hash's first byte, so that one more key among a hundred
//! thousand copies one shard, not the index.

use std::net::IpAddr;
use std::sync::Arc;

use foldhash::HashMap;

use crate::ids::{ApiKeyId, ProjectId, WorkspaceId};

/// SHA-256 of a whole key.
pub type KeyHash = [u8; 32];

/// A caller's key.
#[derive(Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Tenant.
    pub workspace: WorkspaceId,
    /// Group inside the tenant.
    pub project: ProjectId,
    /// For people.
    pub name: Box<str>,
    /// May send requests to models.
    pub inference: bool,
    /// May list models.
    pub list_models: bool,
    /// Which models; `None` = every one.
    pub models: Option<ModelRules>,
    /// Milliseconds since 1970; 0 = never.
    pub expires_at_ms: i64,
    /// Where it may come from; `None` = anywhere.
    pub addresses: Option<Addresses>,
    /// Switched off.
    pub disabled: bool,
}

impl ApiKey {
    /// A key that may do everything in this workspace, for tests of a snapshot before it serves. It
    /// is in no index, so no caller can present it. Its project is the workspace's first.
    pub fn unlimited(workspace: &super::Workspace) -> Self {
        let nobody = ProjectId::from_u128(0);
        Self {
            id: ApiKeyId::from_u128(0),
            workspace: workspace.id,
            project: workspace.projects.keys().min().copied().unwrap_or(nobody),
            name: "self-test".into(),
            inference: true,
            list_models: true,
            models: None,
            expires_at_ms: 0,
            addresses: None,
            disabled: false,
        }
    }
}

/// Names a key may use: exact, or everything with a prefix. Empty = nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelRules {
    exact: Box<[Box<str>]>,
    prefixes: Box<[Box<str>]>,
}

impl ModelRules {
    /// From names; one that ends in `*` stands for all that start with the rest.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let (prefixes, exact): (Vec<&str>, Vec<&str>) = names.into_iter().partition(|n| n.ends_with('*'));
        Self {
            exact: exact.into_iter().map(Into::into).collect(),
            prefixes: prefixes.into_iter().map(|n| n.trim_end_matches('*').into()).collect(),
        }
    }

    /// Whether `name` is one of them.
    pub fn allow(&self, name: &str) -> bool {
        self.exact.iter().any(|n| **n == *name) || self.prefixes.iter().any(|p| name.starts_with(&**p))
    }
}

/// Address blocks in CIDR form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses(Box<[(IpAddr, u8)]>);

impl Addresses {
    /// Reads blocks such as `10.0.0.0/8`, `2001:db8::/32`, or single addresses. Gives back the
    /// first text that is none.
    pub fn parse<'a>(blocks: impl IntoIterator<Item = &'a str>) -> Result<Self, &'a str> {
        blocks.into_iter().map(|text| block(text).ok_or(text)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether `address` lies in one of the blocks. An IPv4 address mapped into IPv6 counts as
    /// IPv4.
    pub fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|(network, bits)| match (network, address) {
            (IpAddr::V4(n), IpAddr::V4(a)) => same_prefix(&n.octets(), &a.octets(), *bits),
            (IpAddr::V6(n), IpAddr::V6(a)) => same_prefix(&n.octets(), &a.octets(), *bits),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        })
    }
}

fn block(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        Some(bits) => bits.parse().ok().filter(|b| *b <= most)?,
        None => most,
    };
    Some((address, bits))
}

fn same_prefix(a: &[u8], b: &[u8], bits: u8) -> bool {
    let whole = usize::from(bits / 8);
    let rest = bits % 8;
    let partial = || {
        let mask = !(0xff_u8 >> rest);
        a.get(whole).zip(b.get(whole)).is_some_and(|(x, y)| x & mask == y & mask)
    };
    a.get(..whole) == b.get(..whole) && (rest == 0 || partial())
}

const SHARDS: usize = 256;

/// All keys of a node.
#[derive(Clone)]
pub struct KeyIndex {
    shards: Vec<Arc<HashMap<KeyHash, Arc<ApiKey>>>>,
    len: usize,
}

impl Default for KeyIndex {
    fn default() -> Self {
        Self { shards: vec![Arc::default(); SHARDS], len: 0 }
    }
}

impl KeyIndex {
    /// The key with this hash.
    pub fn get(&self, hash: &KeyHash) -> Option<&Arc<ApiKey>> {
        self.shards.get(usize::from(hash[0]))?.get(hash)
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds or replaces; gives back what was there.
    pub fn insert(&mut self, hash: KeyHash, key: Arc<ApiKey>) -> Option<Arc<ApiKey>> {
        let shard = self.shards.get_mut(usize::from(hash[0]))?;
        let old = Arc::make_mut(shard).insert(hash, key);
        self.len += usize::from(old.is_none());
        old
    }

    /// Removes; gives back what was there.
    pub fn remove(&mut self, hash: &KeyHash) -> Option<Arc<ApiKey>> {
        let shard = self.shards.get_mut(usize::from(hash[0]))?;
        if !shard.contains_key(hash) {
            return None;
        }
        let old = Arc::make_mut(shard).remove(hash);
        self.len -= usize::from(old.is_some());
        old
    }

    /// Drops all keys of one workspace.
    pub fn remove_workspace(&mut self, workspace: &WorkspaceId) {
        for shard in &mut self.shards {
            if shard.values().any(|key| key.workspace == *workspace) {
                Arc::make_mut(shard).retain(|_, key| key.workspace != *workspace);
            }
        }
        self.len = self.shards.iter().map(|shard| shard.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_blocks() {
        let cases = [
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("192.168.1.128/25", "192.168.1.127", false),
            ("192.168.1.128/25", "192.168.1.200", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("0.0.0.0/0", "::1", false),
        ];
        for (network, address, inside) in cases {
            let addresses = Addresses::parse([network]).expect(network);
            assert_eq!(addresses.contain(address.parse().expect(address)), inside, "{address} in {network}");
        }
        for bad in ["10.0.0.0/33", "10.0.0/8", "x", "::/129", "1.2.3.4/-1", ""] {
            assert_eq!(Addresses::parse([bad]), Err(bad));
        }
    }

    #[test]
    fn an_empty_list_allows_nothing_and_a_star_everything() {
        assert!(!ModelRules::new([]).allow("openai/gpt-4o"));
        assert!(ModelRules::new(["*"]).allow("openai/gpt-4o"));
        let rules = ModelRules::new(["openai/*", "fast"]);
        assert!(rules.allow("openai/gpt-4o") && rules.allow("fast"));
        assert!(!rules.allow("openai") && !rules.allow("faster"));
    }
}
