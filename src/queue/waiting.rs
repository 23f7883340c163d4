//! Records that others wait for.

use super::floor;

/// A subquery for the records of a server that others wait for and that neither are marked failed any more
/// nor wait themselves for an owner who cannot be served. From one to the next in the index: few are waited
/// for, by very many perhaps.
pub fn released(queue: &str, server: &str) -> String {
    let schema = queue.trim_end_matches("sync_queue");
    let above = floor::above_clear(schema.trim_end_matches('.'), server);
    let owners = format!("{schema}sync_owner_state");
    let copies = format!("{schema}sync_copy");
    let next = |after: &str| {
        format!(
            "SELECT min(q.waits_for) FROM {queue} q \
             WHERE q.dst_server = {server} \
               AND q.status = 'waiting' AND {above}{after}"
        )
    };
    format!(
        "WITH RECURSIVE r(root) AS ({} UNION ALL \
           SELECT ({}) FROM r WHERE r.root IS NOT NULL) \
         SELECT r.root FROM r WHERE r.root IS NOT NULL \
           AND NOT EXISTS (SELECT FROM {copies} c \
             WHERE c.id = (- r.root)) \
           AND NOT EXISTS (SELECT FROM {queue} f WHERE f.id = r.root \
             AND (f.status = 'failed' \
               OR f.status = 'pending' AND EXISTS ( \
                 SELECT FROM {owners} s WHERE s.dst_server = f.dst_server \
                   AND s.owner::oid = f.owner::oid)))",
        next(""),
        next(" AND q.waits_for > r.root")
    )
}
