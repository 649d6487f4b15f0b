//! The catalogue, to read: vendors and the models they serve. It comes with the program and is
//! brought up to date by `seed`.

use axum::extract::State;
use compiler::input::{CatalogOffering, Vendor};
use serde_json::json;

use super::crud::{list_in, page_schema};
use super::store::Scope;
use super::view::{beside, beside_schema, fields};
use super::{FilterOn, ListFilter};
use crate::app::App;
use crate::auth::permit::Action;
use crate::error::ApiError;
use crate::rest::{Access, Params, Reply, Route};

const OF_VENDOR: [ListFilter; 1] =
    [ListFilter { query: "vendor", on: FilterOn::Parent, description: "Those of this vendor" }];

pub(super) fn routes() -> Vec<Route> {
    let read = Access::Fleet(Action::ReadWorkspace);
    let mut vendors = Route::get("/api/v1/catalog/vendors", read, vendors)
        .tag("catalog")
        .summary("Lists the vendors that providers can be made of")
        .paged();
    let page = page_schema(json!({ "allOf": [beside_schema(), vendors.reference::<Vendor>()] }));
    vendors = vendors.answers_schema(200, "A page", page);
    let mut models = Route::get("/api/v1/catalog/models", read, models)
        .tag("catalog")
        .summary("Lists the models that vendors serve, with prices")
        .paged()
        .query(OF_VENDOR[0].query, OF_VENDOR[0].description);
    let page = page_schema(json!({ "allOf": [beside_schema(), models.reference::<CatalogOffering>()] }));
    models = models.answers_schema(200, "A page", page);
    vec![vendors, models]
}

async fn vendors(State(app): State<App>, params: Params) -> Result<Reply, ApiError> {
    page(&app, "vendor", &[], &params).await
}

async fn models(State(app): State<App>, params: Params) -> Result<Reply, ApiError> {
    page(&app, "catalog_offering", &OF_VENDOR, &params).await
}

async fn page(app: &App, kind: &str, filters: &[ListFilter], params: &Params) -> Result<Reply, ApiError> {
    list_in(app, &Scope::shared(), kind, filters, params, |object| {
        let mut all = fields(object);
        beside(&mut all, object);
        all
    })
    .await
}
