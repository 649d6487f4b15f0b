//! Which addresses a node may call. Checked on the resolved address that is then connected to, so a
//! name that changes its mind between check and call gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use shared::snapshot::Addresses;

/// The rule for upstream addresses.
#[derive(Debug, Clone)]
pub struct Egress {
    /// Private, loopback and link-local addresses are allowed too.
    pub allow_private: bool,
    /// Blocks allowed whatever else is said, for private upstreams.
    pub allowed: Option<Addresses>,
}

impl Egress {
    /// Keeps the addresses that may be called, in order.
    pub fn filter(&self, addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
        addresses.filter(|a| self.allows(a.ip())).collect()
    }

    /// Whether this very address may be called. The metadata services of clouds never may, unless
    /// listed: nothing that serves models lives there.
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if self.allowed.as_ref().is_some_and(|blocks| blocks.contain(address)) {
            return true;
        }
        match class(address) {
            Class::Public => true,
            Class::Private => self.allow_private,
            Class::Never => false,
        }
    }
}

enum Class {
    Public,
    Private,
    Never,
}

fn class(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(v4) => class_v4(v4),
        IpAddr::V6(v6) => class_v6(v6),
    }
}

/// IANA's registry of special-purpose IPv4 addresses.
fn class_v4(a: Ipv4Addr) -> Class {
    let [first, second, third, _] = a.octets();
    let shared_space = first == 100 && second & 0xc0 == 64;
    let never = a.is_link_local()
        || a.is_multicast()
        || a.is_broadcast()
        || first == 0
        || first >= 240
        || a == Ipv4Addr::new(100, 100, 100, 200)
        || (first, second, third) == (192, 0, 0);
    let private = a.is_private()
        || a.is_loopback()
        || shared_space
        || a.is_documentation()
        || (first == 198 && second & 0xfe == 18);
    match (never, private) {
        (true, _) => Class::Never,
        (false, true) => Class::Private,
        (false, false) => Class::Public,
    }
}

/// IPv6, and the forms that carry an IPv4 address inside, which counts then.
fn class_v6(a: Ipv6Addr) -> Class {
    let segments = a.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        class_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Private,
        [0, 0, 0, 0, 0, 0, 0, 0] => Class::Never,
        // ::a.b.c.d, ::ffff:0:a.b.c.d, and the well-known NAT64 prefix (RFC 6052).
        [0, 0, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            embedded(high, low)
        }
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => embedded(high, low),
        // AWS's metadata service over IPv6.
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => Class::Never,
        [0x64, 0xff9b, 1, ..] | [0x100, 0, 0, 0, ..] | [0x2001, 0..=0x1ff, ..] => Class::Never,
        [0x2001, 0xdb8, ..] => Class::Private,
        [first, ..] if first & 0xfe00 == 0xfc00 => Class::Private,
        [first, ..] if first & 0xffc0 == 0xfe80 || first & 0xff00 == 0xff00 => Class::Never,
        _ => Class::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_by_class() {
        let closed = Egress { allow_private: false, allowed: None };
        let open = Egress { allow_private: true, allowed: None };
        let cases = [
            ("8.8.8.8", true, true),
            ("2606:4700::1", true, true),
            ("127.0.0.1", false, true),
            ("::1", false, true),
            ("10.1.2.3", false, true),
            ("172.16.0.1", false, true),
            ("172.32.0.1", true, true),
            ("192.168.0.1", false, true),
            ("100.64.0.1", false, true),
            ("100.100.100.200", false, false),
            ("169.254.169.254", false, false),
            ("::ffff:169.254.169.254", false, false),
            ("::ffff:127.0.0.1", false, true),
            ("::127.0.0.1", false, true),
            ("64:ff9b::169.254.169.254", false, false),
            ("64:ff9b::10.0.0.1", false, true),
            ("2002:a9fe:a9fe::1", false, false),
            ("fd00:ec2::254", false, false),
            ("fd12::1", false, true),
            ("fe80::1", false, false),
            ("ff02::1", false, false),
            ("0.0.0.0", false, false),
            ("::", false, false),
            ("255.255.255.255", false, false),
            ("240.0.0.1", false, false),
            ("198.18.0.1", false, true),
        ];
        for (text, when_closed, when_open) in cases {
            let address: IpAddr = text.parse().expect(text);
            assert_eq!(closed.allows(address), when_closed, "{text} with private addresses denied");
            assert_eq!(open.allows(address), when_open, "{text} with private addresses allowed");
        }
        let listed = Egress { allow_private: false, allowed: Addresses::parse(["10.0.0.0/8"]).ok() };
        assert!(listed.allows(IpAddr::from([10, 0, 0, 1])) && !listed.allows(IpAddr::from([192, 168, 0, 1])));
    }
}
