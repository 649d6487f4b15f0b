//! Tests over the whole crate: cases as data, properties, a storm.

mod cases;
mod house;
mod listing;
mod properties;
mod retries;
mod storm;
