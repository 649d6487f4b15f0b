//! The control plane: holds the description, compiles it, pushes it, takes back usage.

pub mod db;
