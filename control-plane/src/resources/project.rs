//! Projects: groups of keys. `default` stays.

use compiler::input::Project;
use shared::ids::ProjectId;

use super::known::Known;
use super::store::{Object, Writing};
use super::{DISABLED, FilterOn, ListFilter, Noun, id_text};
use crate::error::{ApiError, Code};

/// Key of the project that every workspace has.
pub(super) const DEFAULT: &str = "default";

pub(super) struct Projects;

impl Noun for Projects {
    type Doc = Project;
    const KIND: &'static str = "project";
    const PATHS: [&'static str; 2] =
        ["/api/v1/workspaces/{workspace}/projects", "/api/v1/workspaces/{workspace}/projects/{id}"];
    const TAG: &'static str = "projects";
    const NAME_FIELD: &'static str = "key";
    const BY_NAME: bool = true;
    const FILTERS: &'static [ListFilter] =
        &[ListFilter { query: "key", on: FilterOn::Name, description: "The one with this key" }, DISABLED];

    fn new_id(now_ms: u64) -> String {
        id_text!(ProjectId, now_ms)
    }

    fn parent(_: &Project) -> String {
        String::new()
    }

    fn name<'a>(doc: &'a Project, _: &'a str) -> &'a str {
        &doc.key
    }

    async fn load(_: &mut Known, _: &mut Writing, _: &Project) -> Result<(), ApiError> {
        Ok(())
    }

    async fn release(writing: &mut Writing, object: &Object) -> Result<(), ApiError> {
        if object.name == DEFAULT {
            return Err(ApiError::new(Code::Protected, "every workspace keeps its project \"default\""));
        }
        super::known::unused(writing, &[("api_key", &object.id)]).await
    }
}
