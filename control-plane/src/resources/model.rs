//! Models: private ones, and a workspace's changes to catalogue entries.

use compiler::input::{Model, Provider};
use shared::ids::ModelId;

use super::known::{Known, targeting};
use super::store::{Object, Writing};
use super::{DISABLED, FilterOn, ListFilter, Noun, id_text};
use crate::error::ApiError;

pub(super) struct Models;

impl Noun for Models {
    type Doc = Model;
    const KIND: &'static str = "model";
    const PATHS: [&'static str; 2] =
        ["/api/v1/workspaces/{workspace}/models", "/api/v1/workspaces/{workspace}/models/{id}"];
    const TAG: &'static str = "models";
    const NAME_FIELD: &'static str = "name";
    const FILTERS: &'static [ListFilter] = &[
        ListFilter { query: "provider_id", on: FilterOn::Parent, description: "Those of this provider" },
        ListFilter { query: "name", on: FilterOn::Name, description: "Those with this name" },
        DISABLED,
    ];

    fn new_id(now_ms: u64) -> String {
        id_text!(ModelId, now_ms)
    }

    fn parent(doc: &Model) -> String {
        doc.provider_id.to_string()
    }

    fn name<'a>(doc: &'a Model, _: &'a str) -> &'a str {
        &doc.name
    }

    async fn load(known: &mut Known, writing: &mut Writing, doc: &Model) -> Result<(), ApiError> {
        known.load_provider(writing, &doc.provider_id.to_string()).await?;
        known.load_model(writing, &doc.provider_id, &doc.name).await
    }

    /// A change to a catalogue entry may go: the entry itself stays.
    async fn release(writing: &mut Writing, object: &Object) -> Result<(), ApiError> {
        let private = serde_json::from_str::<Model>(&object.doc).is_ok_and(|doc| doc.private);
        let provider = writing.find("provider", &object.parent).await?;
        let slug = provider.and_then(|p| serde_json::from_str::<Provider>(&p.doc).ok()).map(|p| p.slug);
        match slug {
            Some(slug) if private => {
                let full = format!("{slug}/{}", object.name);
                targeting(writing, |target| target == full).await
            }
            Some(_) | None => Ok(()),
        }
    }
}
