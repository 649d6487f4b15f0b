//! Named deviations of vendors from their dialect. The only place that knows them; a vendor's row
//! in the catalogue lists the names.

/// The deviations of one vendor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quirks {
    /// `no_stream_options`: refuses `stream_options`; sends usage in streams without being asked.
    pub no_stream_options: bool,
    /// `reasoning_outside_completion`: `completion_tokens` leaves reasoning out, `total_tokens` does
    /// not.
    pub reasoning_outside_completion: bool,
}

/// Every name that [`Quirks::from_names`] knows.
pub const NAMES: [&str; 2] = ["no_stream_options", "reasoning_outside_completion"];

impl Quirks {
    /// From the names in a vendor's row. A name that is not known here is ignored: it may belong to
    /// a newer program, and a vendor must not vanish because of it.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut quirks = Self::default();
        for name in names {
            match name {
                "no_stream_options" => quirks.no_stream_options = true,
                "reasoning_outside_completion" => quirks.reasoning_outside_completion = true,
                _ => {}
            }
        }
        quirks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_has_an_effect_and_others_have_none() {
        for name in NAMES {
            assert_ne!(Quirks::from_names([name]), Quirks::default(), "{name}");
        }
        assert_eq!(Quirks::from_names(["from_the_future"]), Quirks::default());
    }
}
