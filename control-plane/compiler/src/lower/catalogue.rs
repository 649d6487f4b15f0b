//! What a workspace is compiled against: the shared scope as it is published, not as it is written.

use std::collections::{HashMap, HashSet};

use prost::Message;

use shared::proto;
use shared::snapshot::Scope;

/// Vendors and the names of their models.
#[derive(Debug, Default)]
pub struct Catalogue {
    vendors: HashMap<String, proto::Vendor>,
    models: HashMap<String, HashSet<String>>,
}

impl Catalogue {
    /// Reads a compiled shared scope. Rows that do not decode are left out.
    pub fn of(scope: &Scope) -> Self {
        let mut catalogue = Self::default();
        for (slug, body) in scope.of_kind("vendor") {
            if let Ok(vendor) = proto::Vendor::decode(body.clone()) {
                catalogue.vendors.insert(slug.to_owned(), vendor);
            }
        }
        for (_, body) in scope.of_kind("catalog_offering") {
            if let Ok(offering) = proto::CatalogOffering::decode(body.clone()) {
                catalogue.models.entry(offering.vendor).or_default().insert(offering.model);
            }
        }
        catalogue
    }

    /// A vendor by slug.
    pub fn vendor(&self, slug: &str) -> Option<&proto::Vendor> {
        self.vendors.get(slug)
    }

    /// Whether the vendor's part of the catalogue holds this model.
    pub fn holds(&self, vendor: &str, model: &str) -> bool {
        self.models.get(vendor).is_some_and(|models| models.contains(model))
    }
}
