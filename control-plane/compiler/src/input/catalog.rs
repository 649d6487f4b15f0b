//! Documents of the shared scope: the catalogue as the database keeps it. Made from the program's own
//! tables at start, never by callers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shared::money::Nanos;
use shared::proto;
use utoipa::ToSchema;

use super::{BadPrice, Price};

/// A company or program that serves models. Kind `vendor`, id and name = `slug`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vendor {
    /// First segment of its models' names.
    #[schema(example = "openai")]
    pub slug: String,
    /// For people.
    pub display_name: String,
    /// Wire format it speaks.
    pub dialect: String,
    /// Where it is; empty = every connection brings its own; `{name}` is filled in by the
    /// connection's parameters.
    pub base_url: String,
    /// Header that carries the credential.
    pub auth_header: String,
    /// Put before the credential.
    pub auth_prefix: String,
    /// Path under the base URL by endpoint.
    pub endpoints: BTreeMap<String, String>,
    /// Named deviations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quirks: Vec<String>,
    /// Usable without a credential.
    #[serde(default)]
    pub credential_optional: bool,
}

/// A model as one vendor sells it. Kind `catalog_offering`, id and name = `<vendor>/<model>`, parent =
/// the vendor's slug.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CatalogOffering {
    /// Who serves it.
    pub vendor: String,
    /// The id that the vendor's API wants.
    pub model: String,
    /// `<maker>/<model>`, the same for all vendors that serve it.
    pub base_model: String,
    /// `chat` or `embedding`.
    #[serde(rename = "type")]
    pub model_type: String,
    /// Tokens; 0 = unknown.
    pub context_tokens: u64,
    /// Tokens; 0 = unknown.
    pub max_output_tokens: u64,
    /// What it can.
    pub capabilities: Vec<String>,
    /// With every class set.
    pub prices: Vec<CatalogPrice>,
    /// Milliseconds since 1970; 0 = no end announced.
    pub deprecated_at_ms: i64,
}

/// A price row and the id that names it for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CatalogPrice {
    /// See `Price.id` of the snapshot.
    pub id: String,
    /// The row.
    #[serde(flatten)]
    pub row: Price,
}

impl From<&proto::Vendor> for Vendor {
    fn from(v: &proto::Vendor) -> Self {
        let auth = v.auth.clone().unwrap_or_default();
        Self {
            slug: v.slug.clone(),
            display_name: v.display_name.clone(),
            dialect: v.dialect.clone(),
            base_url: v.base_url.clone(),
            auth_header: auth.header,
            auth_prefix: auth.prefix,
            endpoints: v.endpoints.iter().map(|e| (e.endpoint.clone(), e.path.clone())).collect(),
            quirks: v.quirks.clone(),
            credential_optional: v.credential_optional,
        }
    }
}

impl From<&Vendor> for proto::Vendor {
    fn from(v: &Vendor) -> Self {
        let path = |(endpoint, path): (&String, &String)| proto::EndpointPath {
            endpoint: endpoint.clone(),
            path: path.clone(),
        };
        Self {
            slug: v.slug.clone(),
            display_name: v.display_name.clone(),
            dialect: v.dialect.clone(),
            base_url: v.base_url.clone(),
            auth: Some(proto::Auth { header: v.auth_header.clone(), prefix: v.auth_prefix.clone() }),
            endpoints: v.endpoints.iter().map(path).collect(),
            quirks: v.quirks.clone(),
            credential_optional: v.credential_optional,
        }
    }
}

impl From<&proto::CatalogOffering> for CatalogOffering {
    fn from(o: &proto::CatalogOffering) -> Self {
        let facts = o.facts.clone().unwrap_or_default();
        let price = |p: &proto::Price| CatalogPrice { id: p.id.clone(), row: Price::from(p) };
        Self {
            vendor: o.vendor.clone(),
            model: o.model.clone(),
            base_model: o.base_model.clone(),
            model_type: facts.r#type,
            context_tokens: facts.context_tokens,
            max_output_tokens: facts.max_output_tokens,
            capabilities: facts.capabilities,
            prices: facts.prices.iter().map(price).collect(),
            deprecated_at_ms: facts.deprecated_at_ms,
        }
    }
}

impl CatalogOffering {
    /// What nodes read; price ids as stored.
    ///
    /// # Errors
    /// The first amount that cannot be read, with its path.
    pub fn to_proto(&self) -> Result<proto::CatalogOffering, BadPrice> {
        let prices = self.prices.iter().enumerate().map(|(at, price)| {
            let mut row = price.row.to_proto().map_err(|e| e.within(&format!("prices[{at}]")))?;
            row.id = price.id.clone();
            Ok(row)
        });
        let facts = proto::ModelFacts {
            r#type: self.model_type.clone(),
            context_tokens: self.context_tokens,
            max_output_tokens: self.max_output_tokens,
            capabilities: self.capabilities.clone(),
            prices: prices.collect::<Result<_, BadPrice>>()?,
            deprecated_at_ms: self.deprecated_at_ms,
        };
        Ok(proto::CatalogOffering {
            vendor: self.vendor.clone(),
            model: self.model.clone(),
            base_model: self.base_model.clone(),
            facts: Some(facts),
        })
    }
}

impl From<&proto::Price> for Price {
    /// With every class set, so that nothing is left to defaults.
    fn from(p: &proto::Price) -> Self {
        let amount = |nanos: i64| {
            let text = Nanos(nanos).to_string();
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        Self {
            effective_from_ms: (p.effective_from_ms != 0).then_some(p.effective_from_ms),
            above_input_tokens: (p.above_input_tokens != 0).then_some(p.above_input_tokens),
            service_tier: (!p.service_tier.is_empty()).then(|| p.service_tier.clone()),
            input: amount(p.input),
            output: amount(p.output),
            cache_read: Some(amount(p.cache_read)),
            cache_write_5m: Some(amount(p.cache_write_5m)),
            cache_write_1h: Some(amount(p.cache_write_1h)),
            reasoning: Some(amount(p.reasoning)),
            audio_input: Some(amount(p.audio_input)),
            audio_output: Some(amount(p.audio_output)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The database's form loses nothing of a price, whatever the amounts.
        #[test]
        fn prices_survive_the_round_trip(amounts in prop::array::uniform8(0..i64::MAX), above in any::<u64>()) {
            let [input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, audio_input, audio_output] = amounts;
            let price = proto::Price {
                id: String::new(), effective_from_ms: 5, above_input_tokens: above, service_tier: "flex".into(),
                input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, audio_input, audio_output,
            };
            prop_assert_eq!(Price::from(&price).to_proto(), Ok(price));
        }
    }

    #[test]
    fn the_catalogue_survives_the_round_trip() {
        let catalog = shared::catalog::builtin().expect("the built-in catalogue is valid");
        for row in &catalog.vendors {
            let mut sorted = row.vendor.clone();
            sorted.endpoints.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
            assert_eq!(proto::Vendor::from(&Vendor::from(&row.vendor)), sorted);
        }
        for offering in &catalog.offerings {
            assert_eq!(CatalogOffering::from(offering).to_proto().as_ref(), Ok(offering));
        }
    }
}
