//! Names to addresses, remembered for a while. When the resolver fails, what it last said is used:
//! a provider's address rarely changes in the minutes that a resolver is away.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

const FRESH: Duration = Duration::from_secs(30);
const STALE: Duration = Duration::from_secs(3600);
const MOST: usize = 4096;

/// This thread's memory of names.
#[derive(Debug, Default)]
pub struct Resolver(RefCell<HashMap<(String, u16), Known>>);

#[derive(Debug, Clone)]
struct Known {
    addresses: Vec<SocketAddr>,
    at: Instant,
}

impl Resolver {
    /// Addresses of `host`, IPv4 and IPv6 as the system orders them.
    pub async fn lookup(&self, host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
        let plain = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = plain.parse() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let key = (host.to_owned(), port);
        let known = self.0.borrow().get(&key).cloned();
        if let Some(known) = &known
            && known.at.elapsed() < FRESH
        {
            return Ok(known.addresses.clone());
        }
        let found = tokio::net::lookup_host((plain, port)).await.map(Iterator::collect::<Vec<_>>);
        match (found, known) {
            (Ok(addresses), _) if !addresses.is_empty() => {
                let mut names = self.0.borrow_mut();
                if names.len() >= MOST {
                    names.retain(|_, known| known.at.elapsed() < FRESH);
                }
                names.insert(key, Known { addresses: addresses.clone(), at: Instant::now() });
                Ok(addresses)
            }
            (_, Some(known)) if known.at.elapsed() < STALE => Ok(known.addresses),
            (Ok(_), _) => Err(std::io::ErrorKind::NotFound.into()),
            (Err(error), _) => Err(error),
        }
    }
}
