//! Numbers -> the text that Prometheus scrapes.
//!
//! Source: Prometheus, "Exposition formats", version 0.0.4.

use std::fmt::Write;

/// A page of metrics, one family after the other.
#[derive(Debug, Default)]
pub struct Page(String);

pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Page {
    pub fn into_text(self) -> String {
        self.0
    }

    /// Begins a family; its samples follow.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// Without a fraction, and exact, where the number has none.
    pub fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64) {
        self.0.push_str(name);
        self.labels(labels, None);
        self.line(format_args!(" {value}\n"));
    }

    pub fn count(&mut self, name: &str, labels: Labels<'_>, value: u64) {
        self.0.push_str(name);
        self.labels(labels, None);
        self.line(format_args!(" {value}\n"));
    }

    pub fn histogram(&mut self, name: &str, labels: Labels<'_>, histogram: &Histogram) {
        let mut total = 0;
        for (bound, count) in histogram.bounds.iter().map(Some).chain([None]).zip(&histogram.counts) {
            total += count;
            let bound = bound.map_or_else(|| "+Inf".to_owned(), ToString::to_string);
            self.line(format_args!("{name}_bucket"));
            self.labels(labels, Some(&bound));
            self.line(format_args!(" {total}\n"));
        }
        self.sample(&format!("{name}_sum"), labels, histogram.sum);
        self.count(&format!("{name}_count"), labels, total);
    }

    fn labels(&mut self, labels: Labels<'_>, bound: Option<&str>) {
        let all = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        for (index, (name, value)) in all.enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            self.line(format_args!("{}{name}=\"{value}\"", if index == 0 { '{' } else { ',' }));
        }
        if !labels.is_empty() || bound.is_some() {
            self.0.push('}');
        }
    }

    fn line(&mut self, arguments: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.0.write_fmt(arguments);
    }
}

#[derive(Clone, Debug)]
pub struct Histogram {
    /// Upper bounds, ascending.
    bounds: Vec<f64>,
    /// One more than there are bounds.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    pub fn new(bounds: Vec<f64>) -> Self {
        let counts = vec![0; bounds.len() + 1];
        Self { bounds, counts, sum: 0.0 }
    }

    /// `count` bounds, each `factor` times the one before.
    pub fn exponential(first: f64, factor: f64, count: usize) -> Self {
        Self::new(std::iter::successors(Some(first), |bound| Some(bound * factor)).take(count).collect())
    }

    pub fn observe(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket] += 1;
        self.sum += value;
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_page() {
        let mut page = Page::default();
        page.family("requests_total", "counter", "Requests");
        page.count("requests_total", &[("code", "200"), ("path", "a\"b\\c\nd")], 3);
        page.count("requests_total", &[], 4);
        page.family("wait_seconds", "histogram", "Waiting");
        let mut histogram = Histogram::exponential(0.5, 2.0, 3);
        [0.25, 0.5, 1.5, 9.0].into_iter().for_each(|value| histogram.observe(value));
        page.histogram("wait_seconds", &[("ip_family", "IPv4")], &histogram);
        expect![[r#"
            # HELP requests_total Requests
            # TYPE requests_total counter
            requests_total{code="200",path="a\"b\\c\nd"} 3
            requests_total 4
            # HELP wait_seconds Waiting
            # TYPE wait_seconds histogram
            wait_seconds_bucket{ip_family="IPv4",le="0.5"} 2
            wait_seconds_bucket{ip_family="IPv4",le="1"} 2
            wait_seconds_bucket{ip_family="IPv4",le="2"} 3
            wait_seconds_bucket{ip_family="IPv4",le="+Inf"} 4
            wait_seconds_sum{ip_family="IPv4"} 11.25
            wait_seconds_count{ip_family="IPv4"} 4
        "#]]
        .assert_eq(&page.into_text());
    }
}
