//! Providers: vendors as connected in a workspace.

use compiler::input::Provider;
use shared::ids::ProviderId;

use super::known::{Known, targeting, unused};
use super::store::{Object, Writing};
use super::{DISABLED, FilterOn, ListFilter, Noun, id_text};
use crate::error::ApiError;

pub(super) struct Providers;

impl Noun for Providers {
    type Doc = Provider;
    const KIND: &'static str = "provider";
    const PATHS: [&'static str; 2] =
        ["/api/v1/workspaces/{workspace}/providers", "/api/v1/workspaces/{workspace}/providers/{id}"];
    const TAG: &'static str = "providers";
    const NAME_FIELD: &'static str = "slug";
    const BY_NAME: bool = true;
    const FILTERS: &'static [ListFilter] =
        &[ListFilter { query: "slug", on: FilterOn::Name, description: "The one with this slug" }, DISABLED];

    fn new_id(now_ms: u64) -> String {
        id_text!(ProviderId, now_ms)
    }

    fn parent(_: &Provider) -> String {
        String::new()
    }

    fn name<'a>(doc: &'a Provider, _: &'a str) -> &'a str {
        &doc.slug
    }

    fn complete(doc: &mut Provider, old: Option<&Provider>, _: &Known) {
        if doc.slug.is_empty() {
            doc.slug = old.map_or(&doc.vendor, |old| &old.slug).clone();
        }
    }

    async fn load(known: &mut Known, writing: &mut Writing, doc: &Provider) -> Result<(), ApiError> {
        known.load_vendor(writing, &doc.vendor).await
    }

    async fn release(writing: &mut Writing, object: &Object) -> Result<(), ApiError> {
        unused(writing, &[("credential", &object.id), ("model", &object.id)]).await?;
        let prefix = format!("{}/", object.name);
        targeting(writing, |target| target.starts_with(&prefix)).await
    }
}
