//! Everything a trigger needs to know, worked out once and kept until the catalogs change: its
//! arguments, the table's columns and key, the account that connects.

use super::mentioned;
use super::origin::Origin;
use super::table::{Table, TableColumn};
use crate::change::{Binary, Column, Op, Policy, Relation, Route};
use crate::conflict::versions::Versioned;
use crate::connect::account::Account;
use crate::connect::endpoint::Endpoint;
use crate::error::{Error, Result, SqlState};
use crate::local::{ProcessLocal, process_local};
use crate::options::{Mode, OnConflict, Options};
use crate::path::Path;
use crate::pg::invalidation::{self, Epoch};
use crate::pg::output::OutputNeeds;
use crate::pg::row::RowReader;
use crate::pg::spi::{self, Extension};
use crate::pg::text::to_server;
use crate::pg::trigger::Event;
use crate::pg::{Oid, context};
use crate::{guc, identity};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::rc::Rc;

/// A trigger's arguments: server, schema, table and options.
#[derive(Clone, Debug)]
pub struct Arguments {
    pub server: String,
    pub target: Relation,
    pub options: Options,
}

impl Arguments {
    /// Parses the arguments of `sync_dml`.
    ///
    /// # Errors
    /// 22023 for a wrong number of them or an empty one, and what [`Options::parse`] refuses.
    pub fn parse(args: &[String]) -> Result<Self> {
        let refuse = |message: String| {
            Err(
                Error::local(SqlState::INVALID_PARAMETER, message).with_hint(
                    "Use sync_dml(server, target_schema, target_table [, options as JSON]).",
                ),
            )
        };
        let [server, schema, table, options @ ..] = args else {
            return refuse(format!(
                "sync_dml takes 3 or 4 arguments, not {}",
                args.len()
            ));
        };
        if options.len() > 1 {
            return refuse(format!(
                "sync_dml takes 3 or 4 arguments, not {}",
                args.len()
            ));
        }
        if [server, schema, table].iter().any(|name| name.is_empty()) {
            return refuse("sync_dml arguments must not be empty".to_owned());
        }
        Ok(Self {
            server: server.clone(),
            target: Relation {
                schema: schema.clone(),
                table: table.clone(),
            },
            options: options
                .first()
                .map_or_else(|| Ok(Options::default()), |o| Options::parse(o))?,
        })
    }
}

/// What a trigger's definition and its table come to, worked out once.
pub struct Descriptor {
    pub extension: Extension,
    pub account: Account,
    pub mode: Mode,
    /// Sessions with this `application_name` capture nothing; `None` stands for the setting.
    pub guard: Option<CString>,
    /// Only sessions of this role's members are believed to be ours.
    guard_role: Option<Oid>,
    /// UPDATE and DELETE are refused.
    insert_only: bool,
    /// Of changes that originate here.
    pub route: Rc<Route>,
    /// The columns that the route's values are read from.
    pub origin: Rc<Origin>,
    /// Of changes that have come from elsewhere: the session's path that was met last, and the same route
    /// with it; none for a path that has been here.
    forwarded: RefCell<Option<(CString, Option<Rc<Route>>)>>,
    /// Reads all columns of the route.
    pub row: RefCell<RowReader>,
    /// Reads the key, and after it the version under [`Policy::Newest`].
    pub key: RefCell<RowReader>,
    /// Under [`Policy::Newest`]: what tells what rows count as.
    pub versioned: Option<Versioned>,
    /// What the columns' output depends on besides the usual settings.
    pub output: OutputNeeds,
    /// Whether what an UPDATE leaves alone is what the target got before: not so where rows are written that
    /// the trigger does not see.
    pub sees_every_row: bool,
}

process_local! {
    /// Trigger OID to descriptor, with the moment it was true.
    static DESCRIPTORS: RefCell<HashMap<u32, (Epoch, Rc<Descriptor>)>> = RefCell::default();
    /// The one that was asked for last: rows of a statement come one after the other.
    static LAST_DESCRIPTOR: RefCell<Option<(u32, Epoch, Rc<Descriptor>)>> = const { RefCell::new(None) };
}

/// The descriptor of a trigger.
///
/// # Errors
/// Everything that can be wrong with a trigger's definition, see [`Arguments::parse`],
/// [`Table::read`], [`Account::look_up`] and [`Descriptor::new`].
pub fn of_trigger(event: &Event<'_>) -> Result<Rc<Descriptor>> {
    let trigger = event.trigger_oid().to_u32();
    let now = invalidation::now();
    let last = LAST_DESCRIPTOR.with_borrow(|last| match last {
        Some((of, epoch, descriptor)) if (*of, *epoch) == (trigger, now) => {
            Some(descriptor.clone())
        }
        _ => None,
    });
    if let Some(descriptor) = last {
        return Ok(descriptor);
    }
    let descriptor = look_up(event, trigger, now)?;
    LAST_DESCRIPTOR.set(Some((trigger, now, descriptor.clone())));
    Ok(descriptor)
}

fn look_up(event: &Event<'_>, trigger: u32, now: Epoch) -> Result<Rc<Descriptor>> {
    let known = DESCRIPTORS.with_borrow(|known| known.get(&trigger).cloned());
    match known {
        Some((epoch, descriptor)) if epoch == now => Ok(descriptor),
        _ => {
            let extension = Extension::find()?;
            let mut arguments = Arguments::parse(&event.args()?)?;
            // Watched first: what changes while the catalogs are read must not go unseen.
            invalidation::watch(event.relation_oid());
            let epoch = invalidation::now();
            let mut table = Table::read(&extension, event.relation_oid())?;
            table.capture_as_attached(&extension, event.trigger_oid())?;
            let options = &mut arguments.options;
            mentioned::follow_renames(&extension, &table, event.trigger_oid(), options)?;
            let mut descriptor = Descriptor::new(extension, &table, &arguments)?;
            descriptor.sees_every_row = event.sees_every_row();
            let descriptor = Rc::new(descriptor);
            DESCRIPTORS.with_borrow_mut(|known| known.insert(trigger, (epoch, descriptor.clone())));
            Ok(descriptor)
        }
    }
}

impl Descriptor {
    /// Whether the session is one of ours.
    pub fn guards_against_session(&self) -> bool {
        // The session's own setting: what it says in pg_stat_activity may lag behind.
        let named = match &self.guard {
            Some(guard) => context::is_application_name(guard),
            None => guc::guards_session(),
        };
        named && self.believes_session()
    }

    /// Refuses what does not travel.
    ///
    /// # Errors
    /// 55000 for an UPDATE or DELETE of a table that is only appended to.
    pub fn check_event(&self, op: Op) -> Result<()> {
        if !self.insert_only || !matches!(op, Op::Update | Op::Delete) {
            return Ok(());
        }
        let verb = op.keyword().to_lowercase();
        let table = &self.route.source.table;
        let from = if op == Op::Delete { " from" } else { "" };
        let server = &self.account.server_name;
        Err(Error::local(
            SqlState::OBJECT_NOT_READY,
            format!(
                "cannot {verb}{from} table \"{table}\", which is sent to server \"{server}\" with option \
                 \"insert_only\""
            ),
        )
        .with_hint(
            "Give the table a key and attach it without the option, or detach it for the time. TRUNCATE travels.",
        ))
    }

    /// Anyone may take the guard's name, or a path: where a role is given, only its members may.
    fn believes_session(&self) -> bool {
        let believed = |role| context::is_member(context::session_user(), role);
        self.guard_role.is_none_or(believed)
    }

    /// The route of the changes that the session makes; `None` for those that have come back to this
    /// database.
    pub fn route_of_session(&self) -> Option<Rc<Route>> {
        if guc::is_path(c"") || !self.believes_session() {
            return Some(self.route.clone());
        }
        let mut last = self.forwarded.borrow_mut();
        if let Some((_, route)) = last.as_ref().filter(|(path, _)| guc::is_path(path)) {
            return route.clone();
        }
        let text = guc::path();
        let path = Path::parse(&text.to_string_lossy());
        let route = if path.is_empty() {
            Some(self.route.clone())
        } else if path.contains(&identity::name()) {
            None
        } else {
            Some(Rc::new(Route {
                path,
                ..(*self.route).clone()
            }))
        };
        *last = Some((text, route.clone()));
        route
    }

    /// Combines a table with a trigger's arguments.
    ///
    /// # Errors
    /// 42703 for an option that names a column the table lacks; 22023 for columns that do not fit
    /// together (key not sent, generated column named, two columns renamed alike); 55000 for a
    /// table without a key; 42704 for a guard role that does not exist; what [`Account::look_up`] and
    /// [`Endpoint::resolve`] report.
    pub fn new(extension: Extension, table: &Table, arguments: &Arguments) -> Result<Self> {
        let options = &arguments.options;
        let columns = chosen(table, options)?;
        let route = Rc::new(route(table, arguments, &columns)?);
        let account = Account::look_up(&extension, &arguments.server, table.owner)?;
        let guard = match &options.application_name {
            Some(name) => Some(name.clone()),
            None => Endpoint::resolve(&extension, &account)?.own_name.clone(),
        };
        let guard_role = options
            .guard_role
            .as_deref()
            .map(|role| role_oid(&extension, role))
            .transpose()?;
        let attribute = |at: &usize| columns[*at].attribute;
        let mut key: Vec<_> = route.key.iter().map(attribute).collect();
        if let Policy::Newest(at) = route.policy {
            key.push(attribute(&at));
        }
        let all: Vec<_> = columns.iter().map(|c| c.attribute).collect();
        let origin = Origin {
            relation: table.oid,
            attributes: all.iter().map(|attribute| attribute.number).collect(),
            types: all.iter().map(|attribute| attribute.type_oid).collect(),
            has_own_key: options.key.is_none(),
            epoch: table.epoch,
        };
        let versioned = route.version().map(|at| -> Result<Versioned> {
            let mut named: Vec<_> = route.key.iter().map(|at| &columns[*at]).collect();
            named.sort_by_key(|column| &column.name);
            let named: Vec<_> = named.into_iter().map(|column| column.attribute).collect();
            Versioned::new(table.root, &named, attribute(&at))
        });
        Ok(Self {
            versioned: versioned.transpose()?,
            account,
            mode: options.mode,
            guard: guard.as_deref().map(to_server).transpose()?,
            guard_role,
            insert_only: options.insert_only,
            row: RefCell::new(RowReader::new(&all)),
            key: RefCell::new(RowReader::new(&key)),
            output: columns
                .iter()
                .map(|c| c.output)
                .fold(OutputNeeds::default(), OutputNeeds::and),
            sees_every_row: false,
            route,
            origin: Rc::new(origin),
            forwarded: RefCell::default(),
            extension,
        })
    }
}

/// The OID of the role that a guard is tied to. Without it nobody could be told from anybody.
fn role_oid(extension: &Extension, name: &str) -> Result<Oid> {
    let found = spi::select_first(
        extension,
        "SELECT oid FROM pg_roles \
         WHERE rolname::text = $1",
        &[Some(name)],
    )?;
    found.ok_or_else(|| {
        Error::local(
            SqlState::UNDEFINED_OBJECT,
            format!("role \"{name}\" does not exist"),
        )
        .with_hint(
            "The trigger's option \"guard_role\" names it. Create the role, or attach the table again.",
        )
    })
}

/// The columns to send.
fn chosen<'t>(table: &'t Table, options: &Options) -> Result<Vec<&'t TableColumn>> {
    let named = |names: &Option<Vec<String>>| -> Option<BTreeSet<String>> {
        names.as_ref().map(|n| n.iter().cloned().collect())
    };
    let only = named(&options.columns);
    let without = named(&options.exclude);
    let mentioned = only.iter().chain(&without).flatten();
    let mentioned = mentioned
        .chain(options.rename.keys())
        .chain(options.key.iter().flatten());
    for name in mentioned.chain(&options.version_column) {
        if !table.columns.iter().any(|c| c.name == *name) {
            return Err(Error::local(
                SqlState::UNDEFINED_COLUMN,
                format!("column \"{name}\" of relation \"{}\" does not exist", table.name.table),
            )
            .with_hint(
                "Options name columns of the local table. If it was dropped or renamed, attach the table again \
                 with options that name what is there.",
            ));
        }
    }
    if let Some(column) = (table.columns.iter())
        .find(|c| c.generated && only.as_ref().is_some_and(|names| names.contains(&c.name)))
    {
        return Err(Error::local(
            SqlState::INVALID_PARAMETER,
            format!("column \"{}\" is a generated column", column.name),
        )
        .with_hint(
            if table.key.contains(&column.name) && options.key.is_none() {
                GENERATED_KEY.to_owned()
            } else {
                "Generated columns are never sent; leave it out of \"columns\".".to_owned()
            },
        ));
    }
    Ok(table
        .columns
        .iter()
        .filter(|c| !c.generated)
        .filter(|c| only.as_ref().is_none_or(|names| names.contains(&c.name)))
        .filter(|c| {
            without
                .as_ref()
                .is_none_or(|names| !names.contains(&c.name))
        })
        .collect())
}

/// The way out where the key is generated.
const GENERATED_KEY: &str = "Generated columns are never sent, so a row cannot be told by one. Name columns that \
    are not generated and identify a row in the option \"key\", and have a unique index on them there.";

/// The route of a trigger.
/// The positions of the key among the columns to send; none for a table that is only appended to and has no key
/// that is sent.
fn key(table: &Table, options: &Options, columns: &[&TableColumn]) -> Result<Vec<usize>> {
    let is_sent = |name: &String| columns.iter().any(|column| column.name == *name);
    let keyless = options.insert_only
        && options.key.is_none()
        && (table.key.is_empty() || !table.key.iter().all(is_sent));
    let none = Vec::new();
    let key = if keyless {
        &none
    } else {
        options.key.as_ref().unwrap_or(&table.key)
    };
    if keyless
        && !matches!(
            options.on_conflict,
            OnConflict::Overwrite | OnConflict::Error
        )
    {
        return Err(Error::local(
            SqlState::INVALID_PARAMETER,
            format!(
                "\"on_conflict\" of table \"{}\" needs a key",
                table.name.table
            ),
        )
        .with_hint("Rows without a key meet no others: leave \"on_conflict\" out."));
    }
    if key.is_empty() && !keyless && table.has_period_key {
        return Err(Error::local(
            SqlState::OBJECT_NOT_READY,
            format!("the key of table \"{}\" is one WITHOUT OVERLAPS", table.name.table),
        )
        .with_hint(
            "ON CONFLICT cannot rely on such a key. Name columns that identify a row in the option \"key\", and \
             have a unique index on them there; or set \"insert_only\", if its rows are never changed.",
        ));
    }
    if key.is_empty() && !keyless {
        return Err(Error::local(
            SqlState::OBJECT_NOT_READY,
            format!(
                "table \"{}\" has neither a primary key nor a replica identity index",
                table.name.table
            ),
        )
        .with_hint(
            "Add one, or name the columns that identify a row in the option \"key\"; or set \"insert_only\", if its \
             rows are never changed.",
        ));
    }
    let is_generated = |name: &String| table.columns.iter().any(|c| c.generated && c.name == *name);
    if let Some(name) = key.iter().find(|name| is_generated(name)) {
        return Err(Error::local(
            SqlState::INVALID_PARAMETER,
            format!("key column \"{name}\" is a generated column"),
        )
        .with_hint(GENERATED_KEY));
    }
    key.iter()
        .map(|name| position(columns, name, "key"))
        .collect()
}

fn position(columns: &[&TableColumn], name: &str, what: &str) -> Result<usize> {
    columns.iter().position(|c| c.name == name).ok_or_else(|| {
        Error::local(
            SqlState::INVALID_PARAMETER,
            format!("{what} column \"{name}\" is not among the columns to send"),
        )
        .with_hint("Name it in \"columns\", or do not name it in \"exclude\".")
    })
}

fn route(table: &Table, arguments: &Arguments, columns: &[&TableColumn]) -> Result<Route> {
    let options = &arguments.options;
    let key = key(table, options, columns)?;
    let keyless = key.is_empty();
    let policy = match (options.on_conflict, &options.version_column) {
        _ if keyless => Policy::Error,
        (OnConflict::Overwrite, _) => Policy::Overwrite,
        (OnConflict::Error, _) => Policy::Error,
        (OnConflict::Skip, _) => Policy::Skip,
        (OnConflict::Newest, Some(name)) => Policy::Newest(position(columns, name, "version")?),
        (OnConflict::Newest, None) => {
            return Err(Error::internal("\"newest\" without version column"));
        }
    };
    let key_exact = key.iter().all(|at| columns[*at].exact);
    let mut sent: Vec<Column> = columns
        .iter()
        .map(|c| Column {
            name: options.rename.get(&c.name).unwrap_or(&c.name).clone(),
            carrier: c.carrier.clone(),
            identity_always: c.identity_always,
            own_equality: c.own_equality,
            collated: c.collated,
            local: options.rename.contains_key(&c.name).then(|| c.name.clone()),
            binary: Binary::of_type(c.attribute.type_oid.to_u32()),
            own_type: None,
        })
        .collect();
    let version = match policy {
        Policy::Newest(at) => Some(at),
        _ => None,
    };
    for at in key.iter().copied().chain(version) {
        sent[at].own_type.clone_from(&columns[at].own_type);
    }
    let columns = sent;
    let mut seen = BTreeSet::new();
    if let Some(twice) = columns.iter().find(|c| !seen.insert(&c.name)) {
        return Err(Error::local(
            SqlState::INVALID_PARAMETER,
            format!("two columns would be sent as \"{}\"", twice.name),
        )
        .with_hint("Check \"rename\"."));
    }
    Ok(Route {
        source: table.captured_as.clone(),
        target: arguments.target.clone(),
        columns,
        key,
        policy,
        key_exact,
        key_deferrable: table.key_deferrable
            && !keyless
            && options
                .key
                .as_ref()
                .is_none_or(|own| table.key.iter().all(|name| own.contains(name))),
        truncate_children: table.partitioned,
        cascades_from: table.cascades_from.clone(),
        application_name: options.application_name.clone(),
        path: Path::default(),
    })
}
