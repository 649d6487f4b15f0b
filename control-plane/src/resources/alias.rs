//! Aliases: other names for models.

use compiler::input::Alias;
use shared::ids::AliasId;

use super::known::Known;
use super::store::Writing;
use super::{DISABLED, FilterOn, ListFilter, Noun, id_text};
use crate::error::ApiError;

pub(super) struct Aliases;

impl Noun for Aliases {
    type Doc = Alias;
    const KIND: &'static str = "alias";
    const PATHS: [&'static str; 2] =
        ["/api/v1/workspaces/{workspace}/aliases", "/api/v1/workspaces/{workspace}/aliases/{id}"];
    const TAG: &'static str = "aliases";
    const NAME_FIELD: &'static str = "name";
    const FILTERS: &'static [ListFilter] =
        &[ListFilter { query: "name", on: FilterOn::Name, description: "The one with this name" }, DISABLED];

    fn new_id(now_ms: u64) -> String {
        id_text!(AliasId, now_ms)
    }

    fn parent(_: &Alias) -> String {
        String::new()
    }

    fn name<'a>(doc: &'a Alias, _: &'a str) -> &'a str {
        &doc.name
    }

    async fn load(known: &mut Known, writing: &mut Writing, doc: &Alias) -> Result<(), ApiError> {
        // More targets than are allowed are refused without looking them up.
        for target in doc.targets.iter().take(16) {
            if let Some((slug, model)) = target.split_once('/') {
                known.load_target(writing, slug, model).await?;
            }
        }
        Ok(())
    }
}
