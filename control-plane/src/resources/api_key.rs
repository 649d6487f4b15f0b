//! Callers' keys: made here, shown once, kept as a hash. Removing, disabling or letting one expire
//! revokes it; `GET /api/v1/changes/{id}` says when every node refuses it.

use compiler::input::ApiKey;
use shared::ids::ApiKeyId;

use super::known::Known;
use super::store::Writing;
use super::{DISABLED, FilterOn, ListFilter, Noun, id_text};
use crate::auth::token;
use crate::error::ApiError;
use crate::vault::Secret;

pub(super) struct ApiKeys;

impl Noun for ApiKeys {
    type Doc = ApiKey;
    const KIND: &'static str = "api_key";
    const PATHS: [&'static str; 2] =
        ["/api/v1/workspaces/{workspace}/api-keys", "/api/v1/workspaces/{workspace}/api-keys/{id}"];
    const TAG: &'static str = "api-keys";
    const NAME_FIELD: &'static str = "name";
    const FILTERS: &'static [ListFilter] =
        &[ListFilter { query: "project_id", on: FilterOn::Parent, description: "Those of this project" }, DISABLED];
    const SET_BY_US: &'static [&'static str] = &["hash", "hint"];
    const HIDDEN: &'static [&'static str] = &["hash"];

    fn new_id(now_ms: u64) -> String {
        id_text!(ApiKeyId, now_ms)
    }

    fn parent(doc: &ApiKey) -> String {
        doc.project_id.map(|id| id.to_string()).unwrap_or_default()
    }

    /// Names are for people and need not be unique.
    fn name<'a>(_: &'a ApiKey, id: &'a str) -> &'a str {
        id
    }

    fn complete(doc: &mut ApiKey, old: Option<&ApiKey>, known: &Known) {
        if doc.project_id.is_none() {
            doc.project_id = old.map_or(known.default_project(), |old| old.project_id);
        }
    }

    async fn load(known: &mut Known, writing: &mut Writing, doc: &ApiKey) -> Result<(), ApiError> {
        known.load_project(writing, doc.project_id.as_ref()).await
    }

    fn issue(doc: &mut ApiKey) -> Option<(&'static str, Secret)> {
        let key = token::generate(token::API_KEY);
        doc.hash = token::hash(key.expose());
        doc.hint = token::hint(&key);
        Some(("key", key))
    }
}
