//! The ledger on real databases: SQLite always, PostgreSQL when one listens.

mod api;
mod checks;
mod database;
mod ingest;
mod node;
