//! Values of options: sizes the way people write them, and the few special words.

/// A number of bytes, or a share of the memory of the device in question.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// So many bytes.
    Bytes(u64),
    /// So many percent, 0 to 100.
    Percent(f64),
}

impl Size {
    /// The size as [`parse_size`] reads it.
    pub fn text(self) -> String {
        match self {
            Size::Bytes(bytes) => bytes.to_string(),
            Size::Percent(percent) => format!("{percent}%"),
        }
    }

    /// The size in bytes, for a device with `total` bytes of memory.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Size::Bytes(bytes) => bytes,
            Size::Percent(percent) => (total as f64 * percent / 100.0) as u64,
        }
    }
}

/// Below which size something is done: never, up to a size, or always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threshold {
    /// For no size.
    Never,
    /// For sizes above zero and below so many bytes.
    Below(u64),
    /// For every size above zero.
    All,
}

impl Threshold {
    /// Whether `bytes` lies above zero and below the threshold.
    pub fn covers(self, bytes: u64) -> bool {
        match self {
            Threshold::Never => false,
            Threshold::Below(limit) => 0 < bytes && bytes < limit,
            Threshold::All => bytes > 0,
        }
    }
}

/// Where virtual-memory blocks live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    /// In the memory of the device itself.
    Device,
    /// In host memory of one NUMA node, mapped for the device and the host.
    HostNuma(i32),
}

/// Where memory of a tag lives, as far as that can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In the memory of the device.
    Device,
    /// In the memory of the host, reached by the device.
    Host,
    /// Where the driver thinks best: no advice is given.
    None,
}

impl Placement {
    /// Every placement.
    pub const ALL: [Placement; 3] = [Placement::Device, Placement::Host, Placement::None];

    /// Its word in options and calls.
    pub const fn name(self) -> &'static str {
        match self {
            Placement::Device => "device",
            Placement::Host => "host",
            Placement::None => "none",
        }
    }

    /// The placement of a word.
    pub fn from_name(name: &str) -> Option<Placement> {
        Placement::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// Which tags live where; a tag that is not named has no placement of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlacementMap(Vec<(String, Placement)>);

impl PlacementMap {
    /// The placement of a tag, by name.
    pub fn of(&self, tag: &str) -> Option<Placement> {
        let (_, placement) = self.0.iter().find(|(name, _)| name == tag)?;
        Some(*placement)
    }

    /// Whether no tag is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `2GiB`, `512MiB`, `64KiB`, `1.5GiB`, `1000000`, with decimal units (`GB`) as powers of ten.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale);
    }
    let value = number.parse::<f64>().ok()? * scale as f64;
    (value.is_finite() && scale > 1 && value < u64::MAX as f64).then_some(value as u64)
}

/// A size in bytes or percent.
pub fn parse_size(text: &str) -> Option<Size> {
    match text.trim().strip_suffix('%') {
        Some(number) => {
            let percent: f64 = number.trim().parse().ok()?;
            (0.0..=100.0)
                .contains(&percent)
                .then_some(Size::Percent(percent))
        }
        None => parse_bytes(text).map(Size::Bytes),
    }
}

/// `never` or `0`, `all`, or a size.
pub fn parse_threshold(text: &str) -> Option<Threshold> {
    match text.trim().to_ascii_lowercase().as_str() {
        "never" => Some(Threshold::Never),
        "all" | "always" => Some(Threshold::All),
        other => Some(match parse_bytes(other)? {
            0 => Threshold::Never,
            bytes => Threshold::Below(bytes),
        }),
    }
}

/// `device` or `host_numa:N`.
pub fn parse_location(text: &str) -> Option<Location> {
    let text = text.trim();
    if text == "device" {
        return Some(Location::Device);
    }
    let node = text.strip_prefix("host_numa:")?.parse().ok()?;
    (0..=1023)
        .contains(&node)
        .then_some(Location::HostNuma(node))
}

/// The most that may be held: a size, or a share of the memory above none of it. No limit is 0 or 100%.
pub fn parse_limit(text: &str) -> Option<Size> {
    parse_size(text).filter(|size| *size != Size::Percent(0.0))
}

/// `weights=device,kv_cache=host`: tags and their placements, each tag once. Empty for no tag.
pub fn parse_placements(text: &str) -> Option<PlacementMap> {
    let mut map = PlacementMap::default();
    if text.trim().is_empty() {
        return Some(map);
    }
    for pair in text.split(',') {
        // A tag may hold an equals sign, a placement none.
        let (tag, placement) = pair.rsplit_once('=')?;
        let tag = tag.trim();
        if tag.is_empty() || map.of(tag).is_some() {
            return None;
        }
        let placement = Placement::from_name(placement.trim())?;
        map.0.push((tag.to_owned(), placement));
    }
    Some(map)
}

/// Bytes as a person reads them: `2GiB` where it is whole, else with one decimal.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    while unit + 1 < UNITS.len() && bytes >= 1 << (10 * (unit + 1)) {
        unit += 1;
    }
    let scale = 1u64 << (10 * unit);
    if bytes % scale == 0 {
        format!("{}{}", bytes / scale, UNITS[unit])
    } else {
        format!("{:.1}{}", bytes as f64 / scale as f64, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        assert_eq!(parse_bytes("2GiB"), Some(2 << 30));
        assert_eq!(parse_bytes(" 512 MiB "), Some(512 << 20));
        assert_eq!(parse_bytes("1.5KiB"), Some(1536));
        assert_eq!(parse_bytes("4GB"), Some(4_000_000_000));
        assert_eq!(parse_bytes("4096"), Some(4096));
        for bad in [
            "",
            "GiB",
            "1.5",
            "-1",
            "2XB",
            "99999999999TiB",
            "nan",
            "1e9",
        ] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
        assert_eq!(parse_size("80%"), Some(Size::Percent(80.0)));
        assert_eq!(parse_size("101%"), None);
    }

    #[test]
    fn thresholds() {
        assert_eq!(parse_threshold("0"), Some(Threshold::Never));
        assert!(!Threshold::Below(64).covers(0));
        assert!(Threshold::Below(64).covers(63) && !Threshold::Below(64).covers(64));
        assert!(Threshold::All.covers(u64::MAX) && !Threshold::All.covers(0));
    }

    #[test]
    fn limits() {
        assert_eq!(parse_limit("0"), Some(Size::Bytes(0)));
        assert_eq!(parse_limit("100%"), Some(Size::Percent(100.0)));
        assert_eq!(parse_limit("0%"), None);
        assert_eq!(parse_limit("half"), None);
    }

    #[test]
    fn placements_of_tags() {
        let map = parse_placements(" weights=device, kv_cache = host,a=b=none").unwrap();
        assert_eq!(map.of("weights"), Some(Placement::Device));
        assert_eq!(map.of("kv_cache"), Some(Placement::Host));
        assert_eq!(map.of("a=b"), Some(Placement::None));
        assert_eq!(map.of("a"), None);
        assert!(parse_placements(" ").unwrap().is_empty());
        for bad in [
            "weights",
            "=host",
            "a=gpu",
            "a=host,",
            "a=host,a=none",
            "a=Host",
        ] {
            assert_eq!(parse_placements(bad), None, "{bad}");
        }
    }

    #[test]
    fn bytes_round_trip_through_their_text() {
        for bytes in [0, 1, 1023, 1024, 1536, 2 << 30, (2 << 30) + (1 << 29)] {
            assert_eq!(parse_bytes(&format_bytes(bytes)), Some(bytes));
        }
    }
}
