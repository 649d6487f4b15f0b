//! What a document may refer to, read in the transaction that writes it; and who refers to an object
//! that is about to go.

use std::collections::{BTreeMap, BTreeSet};

use compiler::check::References;
use compiler::input::{Alias, Provider, Vendor};
use shared::ids::{ProjectId, ProviderId};

use super::project::DEFAULT;
use super::store::{Object, Scope, Writing, find};
use crate::error::{ApiError, Code};

/// As many users of an object as a refusal names.
const NAMED_USERS: usize = 10;

/// Everything looked up so far.
#[derive(Debug, Default)]
pub(super) struct Known {
    vendors: BTreeMap<String, Vendor>,
    offerings: BTreeSet<(String, String)>,
    projects: BTreeSet<ProjectId>,
    default_project: Option<ProjectId>,
    providers: BTreeMap<ProviderId, Provider>,
    models: BTreeSet<(ProviderId, String)>,
}

impl Known {
    /// The project of keys that name none.
    pub(super) fn default_project(&self) -> Option<ProjectId> {
        self.default_project
    }

    pub(super) async fn load_vendor(&mut self, writing: &mut Writing, slug: &str) -> Result<(), ApiError> {
        let object = find(writing.connection(), &Scope::shared(), "vendor", slug).await?;
        if let Some(vendor) = object.and_then(|o| serde_json::from_str::<Vendor>(&o.doc).ok()) {
            self.vendors.insert(slug.to_owned(), vendor);
        }
        Ok(())
    }

    /// A project, or the default one.
    pub(super) async fn load_project(&mut self, writing: &mut Writing, id: Option<&ProjectId>) -> Result<(), ApiError> {
        let object = match id {
            Some(id) => writing.find("project", &id.to_string()).await?,
            None => writing.find_named("project", "", DEFAULT).await?,
        };
        let found = object.and_then(|o| o.id.parse().ok());
        self.projects.extend(found);
        if id.is_none() {
            self.default_project = found;
        }
        Ok(())
    }

    /// A provider by id, and its vendor.
    pub(super) async fn load_provider(&mut self, writing: &mut Writing, id: &str) -> Result<(), ApiError> {
        let object = writing.find("provider", id).await?;
        self.keep_provider(writing, object).await.map(|_| ())
    }

    /// A workspace's own row of a model, and the catalogue's.
    pub(super) async fn load_model(
        &mut self,
        writing: &mut Writing,
        provider: &ProviderId,
        model: &str,
    ) -> Result<(), ApiError> {
        if writing.find_named("model", &provider.to_string(), model).await?.is_some() {
            self.models.insert((*provider, model.to_owned()));
        }
        let Some(vendor) = self.providers.get(provider).map(|p| p.vendor.clone()) else { return Ok(()) };
        let offering = format!("{vendor}/{model}");
        if find(writing.connection(), &Scope::shared(), "catalog_offering", &offering).await?.is_some() {
            self.offerings.insert((vendor, model.to_owned()));
        }
        Ok(())
    }

    /// What `<slug>/<model>` may mean.
    pub(super) async fn load_target(&mut self, writing: &mut Writing, slug: &str, model: &str) -> Result<(), ApiError> {
        let object = writing.find_named("provider", "", slug).await?;
        match self.keep_provider(writing, object).await? {
            Some(id) => self.load_model(writing, &id, model).await,
            None => Ok(()),
        }
    }

    async fn keep_provider(
        &mut self,
        writing: &mut Writing,
        object: Option<Object>,
    ) -> Result<Option<ProviderId>, ApiError> {
        let Some(object) = object else { return Ok(None) };
        let parsed = object.id.parse::<ProviderId>().ok().zip(serde_json::from_str::<Provider>(&object.doc).ok());
        let Some((id, provider)) = parsed else { return Ok(None) };
        self.load_vendor(writing, &provider.vendor).await?;
        self.providers.insert(id, provider);
        Ok(Some(id))
    }
}

impl References for Known {
    fn vendor(&self, slug: &str) -> Option<&Vendor> {
        self.vendors.get(slug)
    }

    fn offers(&self, vendor: &str, model: &str) -> bool {
        self.offerings.contains(&(vendor.to_owned(), model.to_owned()))
    }

    fn has_project(&self, id: &ProjectId) -> bool {
        self.projects.contains(id)
    }

    fn provider(&self, id: &ProviderId) -> Option<&Provider> {
        self.providers.get(id)
    }

    fn provider_named(&self, slug: &str) -> Option<ProviderId> {
        self.providers.iter().find(|(_, provider)| provider.slug == slug).map(|(id, _)| *id)
    }

    fn has_model(&self, provider: &ProviderId, name: &str) -> bool {
        self.models.contains(&(*provider, name.to_owned()))
    }
}

/// Refuses when objects of these (kind, parent) exist.
pub(super) async fn unused(writing: &mut Writing, children: &[(&str, &str)]) -> Result<(), ApiError> {
    let scope = writing.scope().clone();
    for (kind, parent) in children {
        let users: Vec<(String, String)> = sqlx::query_as(
            "SELECT id, name FROM objects WHERE scope = $1 AND kind = $2 AND parent = $3 AND deleted = 0
             ORDER BY id LIMIT $4",
        )
        .bind(scope.as_str())
        .bind(*kind)
        .bind(*parent)
        .bind(NAMED_USERS as i64)
        .fetch_all(writing.connection())
        .await?;
        in_use(users.into_iter().map(|(id, name)| if id == name { id } else { format!("{id} ({name})") }))?;
    }
    Ok(())
}

/// Refuses when an alias has a target like this.
pub(super) async fn targeting(writing: &mut Writing, is_meant: impl Fn(&str) -> bool) -> Result<(), ApiError> {
    let aliases = writing.all("alias").await?;
    let users = aliases.into_iter().filter(|object| {
        serde_json::from_str::<Alias>(&object.doc)
            .is_ok_and(|alias| alias.targets.iter().any(|target| is_meant(target)))
    });
    in_use(users.map(|object| format!("{} ({})", object.id, object.name)))
}

fn in_use(users: impl Iterator<Item = String>) -> Result<(), ApiError> {
    let users: Vec<String> = users.take(NAMED_USERS).collect();
    if users.is_empty() {
        return Ok(());
    }
    Err(ApiError::new(Code::InUse, format!("in use by {}", users.join(", "))))
}
