//! Exact integer money. Amounts are signed 64-bit nano-dollars; prices are nano-dollars per million
//! tokens; the cost of a request is one 128-bit sum, rounded up once. Floats come nowhere near.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::proto;
use crate::usage::Tokens;

/// An amount in nano-dollars (10^-9 US dollars).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nanos(pub i64);

impl Nanos {
    /// `None` on overflow: about 9.2 thousand million dollars.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }
}

/// Dollars with nine decimals: `0.001234500`.
impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand: it is in a header of every answer, and a formatter costs several times as much.
        let mut text = [b'0'; 32];
        let (mut at, mut left) = (text.len(), self.0.unsigned_abs());
        for digits in 1.. {
            at -= 1;
            text[at] = b'0' + (left % 10) as u8;
            left /= 10;
            if digits == 9 {
                at -= 1;
                text[at] = b'.';
            }
            if digits >= 10 && left == 0 {
                break;
            }
        }
        if self.0 < 0 {
            at -= 1;
            text[at] = b'-';
        }
        f.write_str(std::str::from_utf8(&text[at..]).unwrap_or_default())
    }
}

/// Why a text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadAmount {
    /// Not of the form `12.34`.
    NotDecimal,
    /// More than nine decimals: it would have to be rounded.
    TooFine,
    /// Does not fit.
    TooLarge,
}

impl fmt::Display for BadAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotDecimal => "not a decimal number of US dollars, such as \"0.15\"",
            Self::TooFine => "more than nine decimals; the smallest amount is one nano-dollar",
            Self::TooLarge => "too large",
        })
    }
}

impl std::error::Error for BadAmount {}

/// Reads dollars exactly: an optional minus, digits, and up to nine decimals.
impl std::str::FromStr for Nanos {
    type Err = BadAmount;

    fn from_str(text: &str) -> Result<Self, BadAmount> {
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, fraction) = rest.split_once('.').unwrap_or((rest, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) {
            return Err(BadAmount::NotDecimal);
        }
        let fraction = fraction.trim_end_matches('0');
        if fraction.len() > 9 {
            return Err(BadAmount::TooFine);
        }
        let parse = |s: &str| s.parse::<i64>().map_err(|_| BadAmount::TooLarge);
        let nanos = parse(&format!("{fraction:0<9}"))?;
        let amount =
            parse(whole)?.checked_mul(1_000_000_000).and_then(|w| w.checked_add(nanos)).ok_or(BadAmount::TooLarge)?;
        Ok(Self(if negative { -amount } else { amount }))
    }
}

/// What `tokens` cost at `price`: the sum over classes of tokens times price, divided by a million,
/// rounded up once. `None` when the amount does not fit or a price is negative.
pub fn cost(tokens: &Tokens, price: &proto::Price) -> Option<Nanos> {
    let classes = [
        (tokens.input, price.input),
        (tokens.cache_read, price.cache_read),
        (tokens.cache_write_5m, price.cache_write_5m),
        (tokens.cache_write_1h, price.cache_write_1h),
        (tokens.output, price.output),
        (tokens.reasoning, price.reasoning),
        (tokens.audio_input, price.audio_input),
        (tokens.audio_output, price.audio_output),
    ];
    let mut sum = 0i128;
    for (count, rate) in classes {
        if rate < 0 {
            return None;
        }
        // At most 2^64 * 2^63 per class, eight classes: below 2^127 only when checked.
        sum = sum.checked_add(i128::from(count).checked_mul(i128::from(rate))?)?;
    }
    let rounded = sum.checked_add(999_999)? / 1_000_000;
    i64::try_from(rounded).ok().map(Nanos)
}

/// The row that applies: conditions hold, then latest effective, then most specific, then last.
/// `None` when no row applies: the request is unpriced, which is reported and never means free.
pub fn select<'a>(
    prices: &'a [proto::Price],
    tokens: &Tokens,
    service_tier: &str,
    now_ms: i64,
) -> Option<&'a proto::Price> {
    let prompt = tokens.prompt();
    prices
        .iter()
        .filter(|p| {
            p.effective_from_ms <= now_ms
                && (p.above_input_tokens == 0 || prompt > p.above_input_tokens)
                && (p.service_tier.is_empty() || p.service_tier == service_tier)
        })
        // `max_by_key` keeps the last of equals.
        .max_by_key(|p| (p.effective_from_ms, !p.service_tier.is_empty(), p.above_input_tokens))
}

/// The id a price row must carry: the first 16 hex digits of the SHA-256 of the row without it.
pub fn price_id(price: &proto::Price) -> String {
    let bare = proto::Price { id: String::new(), ..price.clone() };
    let hash = crate::digest::sha256(&[&prost::Message::encode_to_vec(&bare)]);
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_read_and_print_exactly() {
        let cases = [
            ("0.15", Ok(150_000_000)),
            ("-3", Ok(-3_000_000_000)),
            ("0.000000001", Ok(1)),
            ("1.0000000000", Ok(1_000_000_000)),
            ("0.0000000001", Err(BadAmount::TooFine)),
            ("1e3", Err(BadAmount::NotDecimal)),
            ("", Err(BadAmount::NotDecimal)),
            (".5", Err(BadAmount::NotDecimal)),
            ("9223372037", Err(BadAmount::TooLarge)),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Nanos>().map(|n| n.0), expected, "{text}");
        }
        assert_eq!(Nanos(-1_500_000_000).to_string(), "-1.500000000");
        assert_eq!(Nanos(0).to_string(), "0.000000000");
        assert_eq!(Nanos(i64::MIN).to_string(), "-9223372036.854775808");
    }

    #[test]
    fn one_rounding_up_per_request() {
        let price = proto::Price { input: 1, output: 1, ..Default::default() };
        let tokens = Tokens { input: 1, output: 1, ..Default::default() };
        assert_eq!(cost(&tokens, &price), Some(Nanos(1)));
        assert_eq!(cost(&Tokens::default(), &price), Some(Nanos(0)));
        let negative = proto::Price { output: -1, ..price };
        assert_eq!(cost(&tokens, &negative), None);
    }

    #[test]
    fn rows_are_chosen_by_condition_then_date() {
        let row = |input, from, above, tier: &str| proto::Price {
            input,
            effective_from_ms: from,
            above_input_tokens: above,
            service_tier: tier.into(),
            ..Default::default()
        };
        let rows = [row(1, 0, 0, ""), row(2, 0, 200, ""), row(3, 0, 0, "flex"), row(4, 1_000, 0, "")];
        let pick =
            |input, tier, now| select(&rows, &Tokens { input, ..Default::default() }, tier, now).map(|p| p.input);
        assert_eq!(pick(100, "", 0), Some(1));
        assert_eq!(pick(200, "", 0), Some(1));
        assert_eq!(pick(201, "", 0), Some(2));
        assert_eq!(pick(100, "flex", 0), Some(3));
        assert_eq!(pick(100, "", 1_000), Some(4));
        assert_eq!(select(&rows[3..], &Tokens::default(), "", 0), None);
    }

    proptest! {
        /// Against an oracle that sums exact fractions in wider steps.
        #[test]
        fn cost_is_the_exact_sum_rounded_up(counts in any::<[u32; 4]>(), rates in any::<[u32; 4]>()) {
            let tokens = Tokens {
                input: counts[0].into(), cache_read: counts[1].into(),
                output: counts[2].into(), reasoning: counts[3].into(), ..Default::default()
            };
            let price = proto::Price {
                input: rates[0].into(), cache_read: rates[1].into(),
                output: rates[2].into(), reasoning: rates[3].into(), ..Default::default()
            };
            let sum: u128 = counts.iter().zip(rates).map(|(c, r)| u128::from(*c) * u128::from(r)).sum();
            let expected = sum.div_ceil(1_000_000);
            prop_assert_eq!(cost(&tokens, &price).map(|n| n.0 as u128), Some(expected));
        }

        #[test]
        fn printing_then_reading_is_the_identity(nanos in any::<i64>().prop_filter("min has no positive", |n| *n != i64::MIN)) {
            prop_assert_eq!(Nanos(nanos).to_string().parse::<Nanos>(), Ok(Nanos(nanos)));
        }
    }
}
