//! What is wrong between tables here and their targets on servers: `check_sync`, and what `attach_sync` says of
//! the one that it attaches.
//!
//! Looked at with nothing but the catalogs of both sides, which are asked the same `question`; all servers at
//! once (`ask`), each over a connection of the table owner's. What `problems` finds keeps changes from arriving
//! and is said by `attach_sync` too; `types` says what becomes of values. What else is found, `check_sync`
//! alone says: `surprises` of the target, `server` of the server and the role there, `attached` of the
//! triggers here, `mesh` of what is to be seen of several together, `state` of what waits.

mod ask;
mod attached;
mod facts;
mod finding;
mod mesh;
mod problems;
mod question;
mod server;
mod state;
mod surprises;
pub mod types;

pub use self::finding::{Finding, Severity};

use self::ask::{Answer, Question};
use self::attached::{Attached, Caller};
use self::facts::{RelationFacts, ServerFacts, TargetFacts};
use self::mesh::Pair;
use self::problems::CheckSubject;
use self::question::Asked;
use self::server::Reached;
use crate::capture::descriptor::{Arguments, Descriptor};
use crate::capture::mentioned;
use crate::capture::table::Table;
use crate::change::{Relation, Route};
use crate::connect::account::{Account, AccountKey, server_oid};
use crate::connect::endpoint::Endpoint;
use crate::error::{Result, SqlState};
use crate::options::Mode;
use crate::pg::columns::Json;
use crate::pg::spi::{self, Extension};
use crate::pg::{Oid, context};
use crate::{identity, worker};
use std::rc::Rc;

/// One row of `check_sync`.
pub struct Problem {
    pub table: Option<Oid>,
    pub server: Option<String>,
    pub severity: Severity,
    pub problem: String,
    pub hint: String,
}

impl Problem {
    fn new(table: Option<Oid>, server: Option<&str>, finding: &Finding) -> Self {
        Self {
            table,
            server: server.map(str::to_owned),
            severity: finding.severity,
            problem: finding.problem.one_line(),
            hint: finding.problem.hint().unwrap_or_default(),
        }
    }
}

/// Looks at the target of what a trigger would send, for `pg_rowsync.connect_timeout` at most: what `problems` finds,
/// and every error that [`check`] would find. What is in the way of looking is a finding too. A request to cancel is
/// raised.
///
/// # Errors
/// What the local catalogs report.
pub fn look(
    extension: &Extension,
    local: &Relation,
    descriptor: &Descriptor,
) -> Result<Vec<Finding>> {
    let account = &descriptor.account;
    let route = &*descriptor.route;
    let server = &account.server_name;
    let endpoint = match Endpoint::resolve(extension, account) {
        Ok(endpoint) => endpoint,
        Err(error) => return Ok(vec![problems::not_asked(server, &error)]),
    };
    let guard = route.application_name.clone();
    let guard = guard.unwrap_or_else(|| endpoint.application_name.clone());
    let answer = ask::ask(&[Question {
        endpoint: endpoint.clone(),
        relations: vec![asked(route)],
    }])?
    .into_iter()
    .next();
    let answer = match answer {
        Some(Ok(answer)) => answer,
        Some(Err(error)) => return Ok(vec![problems::not_asked(server, &error)]),
        None => return Ok(Vec::new()),
    };
    let is_error = |finding: &Finding| finding.severity == Severity::Error;
    let of_server = of_server(
        extension,
        &endpoint,
        &answer,
        &server_here(extension)?,
        &[(descriptor.mode, route)],
    )?;
    let mut found: Vec<Finding> = of_server.into_iter().filter(is_error).collect();
    if let Some(Some(facts)) = answer.targets.first() {
        let here = relations_here(extension, &[local])?
            .pop()
            .and_then(|here| here.table);
        let database = database(extension)?;
        let here = here.as_ref();
        let subject = CheckSubject {
            server,
            database: &database,
            local,
            route,
            guard: &guard,
            here,
        };
        found.extend(problems::findings(&subject, &answer.server, facts));
        let surprises =
            (facts.table.iter()).flat_map(|target| surprises::findings(&subject, target));
        found.extend(surprises.filter(is_error));
    }
    Ok(found)
}

/// What there is to be said of a server to which these are sent.
fn of_server(
    extension: &Extension,
    endpoint: &Endpoint,
    answer: &Answer,
    here: &ServerFacts,
    sent: &[(Mode, &Route)],
) -> Result<Vec<Finding>> {
    let account = &endpoint.account;
    let reached = Reached {
        server: &account.server_name,
        owner: &role_name(extension, account.owner)?,
        peer: answer.peer,
        pooled: endpoint.pooled,
        clock_ahead: answer.clock_ahead,
        mode: sent.iter().map(|(mode, _)| *mode).max().unwrap_or_default(),
        by_newest: sent.iter().any(|(_, route)| route.version().is_some()),
    };
    Ok(server::findings(&reached, here, &answer.server))
}

/// What a server is asked about a route.
fn asked(route: &Route) -> Asked<'_> {
    let version = route.version().map(|at| route.columns[at].name.as_str());
    Asked {
        relation: &route.target,
        version,
    }
}

/// What is in the way of asking anything over an account, if something is; for `pg_rowsync.connect_timeout`
/// at most. A request to cancel is raised.
///
/// # Errors
/// What the local catalogs report.
pub fn unreachable(extension: &Extension, account: &Account) -> Result<Option<Finding>> {
    let answer = match Endpoint::resolve(extension, account) {
        Ok(endpoint) => ask::ask(&[Question {
            endpoint,
            relations: Vec::new(),
        }])?
        .pop(),
        Err(error) => Some(Err(error)),
    };
    let failure = answer.and_then(Result::err);
    Ok(failure.map(|error| problems::not_asked(&account.server_name, &error)))
}

/// The current database's name.
fn database(extension: &Extension) -> Result<String> {
    spi::select_one(extension, "SELECT pg_catalog.current_database()", &[])
}

/// What the current database says of relations.
fn relations_here(extension: &Extension, relations: &[&Relation]) -> Result<Vec<TargetFacts>> {
    let mut facts = Vec::new();
    let asked: Vec<Asked<'_>> = relations
        .iter()
        .map(|relation| Asked {
            relation,
            version: None,
        })
        .collect();
    for some in asked.chunks(question::RELATIONS_AT_ONCE) {
        let parameter = question::parameter(some);
        let Json(answer): Json<Vec<TargetFacts>> =
            spi::select_one(extension, &question::about_relations(), &[Some(&parameter)])?;
        facts.extend(answer);
    }
    Ok(facts)
}

/// What the current database says of itself.
fn server_here(extension: &Extension) -> Result<ServerFacts> {
    let Json(facts) = spi::select_one(extension, question::ABOUT_SERVER, &[])?;
    Ok(facts)
}

/// A table that is attached, as far as it can be delivered.
struct Delivered {
    attached: Attached,
    account: Account,
    mode: Mode,
    route: Rc<Route>,
}

/// Looks at everything that is attached and is the caller's to look at, or one table, or what is sent to one
/// server; the gravest problems first. A request to cancel is raised.
///
/// # Errors
/// 42501 for a table that is not the caller's, 42704 for a server that is not there.
pub fn check(
    extension: &Extension,
    table: Option<Oid>,
    server: Option<&str>,
) -> Result<Vec<Problem>> {
    if let Some(server) = server {
        server_oid(extension, server)?;
    }
    let caller = Caller::current(extension, context::user())?;
    let all = attached::list(extension, &caller, table, server)?;
    let mut found = Vec::new();
    if all.is_empty() {
        let what = if table.is_some() {
            "this table"
        } else {
            "no table"
        };
        let problem = match (table, server) {
            (Some(_), Some(server)) => format!("{what} is not sent to server \"{server}\""),
            (Some(_), None) => format!("{what} is not attached"),
            (None, Some(server)) => format!("{what} of yours is sent to server \"{server}\""),
            (None, None) => return of_database(extension, &caller, &[]),
        };
        let finding = Finding::notice(problem, "attach_sync attaches tables.");
        return Ok(vec![Problem::new(table, server, &finding)]);
    }
    let mut delivered = Vec::new();
    for attached in all {
        let table = Some(attached.table);
        let server = attached.server().to_owned();
        let findings = attached.findings();
        found.extend(
            findings
                .iter()
                .map(|one| Problem::new(table, Some(&server), one)),
        );
        match describe(extension, attached) {
            Ok(one) => delivered.push(one),
            Err(error) => {
                found.push(Problem::new(table, Some(&server), &Finding::failure(error)));
            }
        }
    }
    let servers: Vec<String> = delivered
        .iter()
        .map(|one| one.attached.server().to_owned())
        .collect();
    found.extend(of_servers(extension, delivered)?);
    found.extend(of_database(extension, &caller, &servers)?);
    found.sort_by(|one, other| {
        let order = |problem: &Problem| {
            let table = problem.table.map(|oid| oid.to_u32());
            (problem.severity, problem.server.clone(), table)
        };
        order(one).cmp(&order(other))
    });
    found.dedup_by(|one, other| {
        (one.table, &one.server, &one.problem) == (other.table, &other.server, &other.problem)
    });
    Ok(found)
}

/// What a trigger's first fire would make of the table.
fn describe(extension: &Extension, attached: Attached) -> Result<Delivered> {
    let table = Table::read(extension, attached.table)?;
    let mut arguments = Arguments::parse(&attached.args)?;
    if let Some(trigger) = attached.row_trigger() {
        mentioned::follow_renames(extension, &table, trigger.oid, &mut arguments.options)?;
    }
    let descriptor = Descriptor::new(extension.clone(), &table, &arguments)?;
    let Descriptor {
        account,
        mode,
        route,
        ..
    } = descriptor;
    Ok(Delivered {
        attached,
        account,
        mode,
        route,
    })
}

/// Tables that one account sends.
struct Group {
    key: AccountKey,
    endpoint: Rc<Endpoint>,
    members: Vec<Delivered>,
}

/// Asks all servers, and judges.
fn of_servers(extension: &Extension, delivered: Vec<Delivered>) -> Result<Vec<Problem>> {
    let mut found = Vec::new();
    let mut groups: Vec<Group> = Vec::new();
    for one in delivered {
        let key = one.account.key();
        if let Some(group) = groups.iter_mut().find(|group| group.key == key) {
            group.members.push(one);
            continue;
        }
        match Endpoint::resolve(extension, &one.account) {
            Ok(endpoint) => groups.push(Group {
                key,
                endpoint,
                members: vec![one],
            }),
            Err(error) => {
                let table = Some(one.attached.table);
                let server = Some(one.attached.server());
                found.push(Problem::new(table, server, &Finding::failure(error)));
            }
        }
    }
    let questions: Vec<Question<'_>> = groups
        .iter()
        .map(|group| Question {
            endpoint: group.endpoint.clone(),
            relations: group.members.iter().map(|one| asked(&one.route)).collect(),
        })
        .collect();
    let answers = ask::ask(&questions)?;
    let here = server_here(extension)?;
    let database = database(extension)?;
    for (group, answer) in groups.iter().zip(answers) {
        let server = &group.endpoint.account.server_name;
        match answer {
            Ok(answer) => found.extend(of_group(extension, group, &answer, &here, &database)?),
            Err(error) => {
                let finding = problems::not_asked(server, &error);
                found.push(Problem::new(None, Some(server), &finding));
            }
        }
    }
    Ok(found)
}

fn of_group(
    extension: &Extension,
    group: &Group,
    answer: &Answer,
    here: &ServerFacts,
    database: &str,
) -> Result<Vec<Problem>> {
    let server = group.endpoint.account.server_name.as_str();
    let sent: Vec<(Mode, &Route)> = (group.members.iter())
        .map(|one| (one.mode, &*one.route))
        .collect();
    let of_server = of_server(extension, &group.endpoint, answer, here, &sent)?;
    let mut found: Vec<Problem> = of_server
        .iter()
        .map(|one| Problem::new(None, Some(server), one))
        .collect();
    let names: Vec<&Relation> = group.members.iter().map(|one| &one.attached.name).collect();
    let tables_here = relations_here(extension, &names)?;
    let targets = state::targets_of(extension, server)?;
    for ((one, target), local) in group.members.iter().zip(&answer.targets).zip(&tables_here) {
        let Some(facts) = target else { continue };
        let route = &*one.route;
        let guard = route
            .application_name
            .as_ref()
            .unwrap_or(&group.endpoint.application_name);
        let local_name = &one.attached.name;
        let here = local.table.as_ref();
        let subject = CheckSubject {
            server,
            database,
            local: local_name,
            route,
            guard,
            here,
        };
        let mut findings = problems::findings(&subject, &answer.server, facts);
        if let Some(target) = &facts.table {
            findings.extend(surprises::findings(&subject, target));
            let pair = Pair {
                subject: &subject,
                target,
            };
            findings.extend(mesh::parents(&pair, &targets));
            findings.extend(mesh::gap(&pair, other_servers(here, server)));
        }
        let table = Some(one.attached.table);
        found.extend(
            findings
                .iter()
                .map(|one| Problem::new(table, Some(server), one)),
        );
    }
    Ok(found)
}

/// How many servers besides this one a table is sent to.
fn other_servers(here: Option<&RelationFacts>, server: &str) -> usize {
    let mut names: Vec<&String> = (here.into_iter())
        .flat_map(RelationFacts::active_triggers)
        .filter_map(|trigger| trigger.args.first())
        .filter(|name| *name != server)
        .collect();
    names.sort_unstable();
    names.dedup();
    names.len()
}

fn role_name(extension: &Extension, role: Oid) -> Result<String> {
    let sql = "SELECT pg_catalog.pg_get_userbyid($1::pg_catalog.oid)";
    spi::select_one(extension, sql, &[Some(&role.to_u32().to_string())])
}

/// What there is to be said of the current database, and of what waits for servers.
fn of_database(extension: &Extension, caller: &Caller, servers: &[String]) -> Result<Vec<Problem>> {
    let mut found = Vec::new();
    if identity::is_copy()? {
        let problem = "this database is a copy of the one that pg_rowsync was set up in: its changes are neither \
                       captured nor sent";
        let finding = Finding::error(
            SqlState::OBJECT_NOT_READY,
            problem,
            "adopt_sync() makes it a database of its own; detach_sync ends its part.",
        );
        found.push(Problem::new(None, None, &finding));
    }
    if !servers.is_empty() {
        let finding = state::of_worker(worker::state(extension)?);
        found.extend(
            finding
                .iter()
                .map(|finding| Problem::new(None, None, finding)),
        );
    }
    for (table, server, finding) in state::of_queue(extension, caller)? {
        found.push(Problem::new(table, Some(&server), &finding));
    }
    Ok(found)
}
