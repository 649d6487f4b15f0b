//! What a request may cost before it runs and what it cost afterwards, from an offering's prices.
//! An offering without a price that applies is unpriced, which is reported and never means free.

use shared::money::{self, Nanos};
use shared::proto;
use shared::snapshot::Offering;
use shared::usage::Tokens;

/// A settled cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Priced<'a> {
    /// The price row that applied.
    pub price_id: &'a str,
    /// The amount.
    pub cost: Nanos,
}

/// What `tokens` cost at this offering. `None`: unpriced, or the amount does not fit 64 bits.
pub fn cost<'a>(offering: &'a Offering, tokens: &Tokens, service_tier: &str, now_ms: i64) -> Option<Priced<'a>> {
    let price = money::select(&offering.facts.prices, tokens, service_tier, now_ms)?;
    Some(Priced { price_id: &price.id, cost: money::cost(tokens, price)? })
}

/// The most a request can cost, whatever the tier and however its tokens fall into classes.
///
/// `prompt_bytes` is an upper bound of the prompt's text in bytes: no token is shorter than one.
/// `max_tokens` bounds what is produced; without it the offering's own limit does. `None`: unpriced
/// (also when only rows for special tiers apply), or there is no bound. Embedded files are not text:
/// a request that holds any has no bound here.
pub fn most(offering: &Offering, prompt_bytes: u64, max_tokens: Option<u64>, now_ms: i64) -> Option<Nanos> {
    let facts = &offering.facts;
    let produced = match (max_tokens, facts.max_output_tokens) {
        _ if facts.r#type == "embedding" => 0,
        (Some(asked), _) => asked,
        (None, 0) => return None,
        (None, limit) => limit,
    };
    let prompt = match facts.context_tokens {
        0 => prompt_bytes,
        most => prompt_bytes.min(most),
    };
    money::select(&facts.prices, &Tokens { input: prompt, ..Tokens::default() }, "", now_ms)?;
    let mut dearest = proto::Price::default();
    for price in facts.prices.iter().filter(|price| price.effective_from_ms <= now_ms) {
        let read = [price.input, price.cache_read, price.cache_write_5m, price.cache_write_1h, price.audio_input];
        dearest.input = read.into_iter().fold(dearest.input, i64::max);
        dearest.output = [price.output, price.reasoning, price.audio_output].into_iter().fold(dearest.output, i64::max);
    }
    money::cost(&Tokens { input: prompt, output: produced, ..Tokens::default() }, &dearest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offering(prices: Vec<proto::Price>, context_tokens: u64, max_output_tokens: u64) -> Offering {
        Offering {
            model: "m".into(),
            upstream_model: "m".into(),
            base_model: "".into(),
            private: false,
            base_url: None,
            facts: proto::ModelFacts {
                r#type: "chat".into(),
                context_tokens,
                max_output_tokens,
                prices,
                ..Default::default()
            },
        }
    }

    #[test]
    fn without_a_price_or_a_bound_there_is_no_amount() {
        let price = proto::Price { id: "a".into(), input: 1_000_000, output: 2_000_000, ..Default::default() };
        let tokens = Tokens { input: 10, output: 5, ..Tokens::default() };
        assert_eq!(cost(&offering(vec![], 0, 0), &tokens, "", 0), None);
        assert_eq!(most(&offering(vec![], 0, 0), 10, Some(1), 0), None);
        let priced = offering(vec![price.clone()], 0, 0);
        assert_eq!(cost(&priced, &tokens, "", 0), Some(Priced { price_id: "a", cost: Nanos(20) }));
        assert_eq!(most(&priced, 10, None, 0), None);
        assert_eq!(most(&priced, 10, Some(5), 0), Some(Nanos(20)));
        assert_eq!(most(&offering(vec![price.clone()], 0, 5), 10, None, 0), Some(Nanos(20)));
        assert_eq!(most(&offering(vec![price.clone()], 4, 5), 10, None, 0), Some(Nanos(14)));
        let flex = proto::Price { service_tier: "flex".into(), ..price.clone() };
        assert_eq!(most(&offering(vec![flex], 0, 0), 10, Some(5), 0), None);
        let later = proto::Price { effective_from_ms: 5, ..price };
        assert_eq!(most(&offering(vec![later], 0, 0), 10, Some(5), 4), None);
    }

    proptest! {
        /// However a prompt of so many bytes and an answer of so many tokens are billed.
        #[test]
        fn no_cost_exceeds_the_most(
            rates in prop::collection::vec(any::<[u32; 8]>(), 1..4),
            above in any::<[u16; 3]>(),
            split in any::<[u16; 8]>(),
            tier in any::<bool>(),
        ) {
            let rows = rates.iter().zip(above).enumerate().map(|(n, (r, above))| proto::Price {
                above_input_tokens: if n == 0 { 0 } else { above.into() },
                service_tier: if n == 2 { "flex".into() } else { String::new() },
                input: r[0].into(), cache_read: r[1].into(), cache_write_5m: r[2].into(), cache_write_1h: r[3].into(),
                output: r[4].into(), reasoning: r[5].into(), audio_input: r[6].into(), audio_output: r[7].into(),
                ..Default::default()
            });
            let offering = offering(rows.collect(), 0, 0);
            let tokens = Tokens {
                input: split[0].into(), cache_read: split[1].into(), cache_write_5m: split[2].into(),
                cache_write_1h: split[3].into(), output: split[4].into(), reasoning: split[5].into(),
                audio_input: split[6].into(), audio_output: split[7].into(),
            };
            let bound = most(&offering, tokens.prompt(), Some(tokens.produced()), 0).expect("priced and bounded");
            let spent = cost(&offering, &tokens, if tier { "flex" } else { "" }, 0).expect("priced");
            prop_assert!(spent.cost <= bound, "{:?} > {:?}", spent, bound);
        }
    }
}
