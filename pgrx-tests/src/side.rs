//! One of the two databases that are kept in step: a database, and a login role of the same name
//! that owns a schema of the same name in it.
//!
//! Methods that return a plain value are for tests and panic with the statement that failed; the
//! others return the error.

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use postgres::error::DbError;
use postgres::types::FromSqlOwned;
use postgres::{Client, NoTls};

use crate::cluster::Cluster;
use crate::reaper::random_hex;

/// Notices and warnings in the order in which the server sent them.
pub type Notices = Arc<Mutex<Vec<DbError>>>;

/// The tables of [`create_recipe_tables`], left and right.
pub const RECIPE_TABLES: [&str; 2] = ["loc_test", "rmt_test"];

/// Database, role and schema have one name, so unqualified tables of the role are in its schema.
#[derive(Clone)]
pub struct Side {
    pub cluster: Arc<Cluster>,
    pub db: String,
    pub user: String,
    pub password: String,
}

impl Side {
    /// Creates role, database, schema and the extension (in schema `public`). The name must be a
    /// plain lower-case identifier.
    pub fn create(cluster: &Arc<Cluster>, name: &str) -> Result<Side> {
        let side = Side::create_without_extension(cluster, name)?;
        side.connect_superuser()?
            .batch_execute(&format!(
                "create extension pg_rowsync schema public;
                 grant usage on foreign data wrapper pg_rowsync to {name}"
            ))
            .context("could not create the extension pg_rowsync")?;
        Ok(side)
    }

    /// As `create`, without the extension, which a mere target does not need.
    pub fn create_without_extension(cluster: &Arc<Cluster>, name: &str) -> Result<Side> {
        Side::create_as(cluster, name, "")
    }

    /// As `create_without_extension`, under other options of CREATE DATABASE.
    pub fn create_as(cluster: &Arc<Cluster>, name: &str, options: &str) -> Result<Side> {
        let password = random_hex()?;
        let mut client = cluster.superuser("postgres")?;
        client.batch_execute(&format!("create role {name} login password '{password}'"))?;
        client.batch_execute(&format!("create database {name} {options}"))?;
        let db = name.to_owned();
        let user = name.to_owned();
        let side = Side {
            cluster: cluster.clone(),
            db,
            user,
            password,
        };
        side.connect_superuser()?
            .batch_execute(&format!("create schema authorization {name}"))?;
        Ok(side)
    }

    /// Ends the sessions and drops database and role.
    pub fn drop(&self) -> Result<()> {
        let mut client = self.cluster.superuser("postgres")?;
        client.batch_execute(&format!("drop database if exists {} with (force)", self.db))?;
        client.batch_execute(&format!("drop role if exists {}", self.user))?;
        Ok(())
    }

    /// As the owner.
    pub fn connect(&self) -> Result<Client, postgres::Error> {
        self.cluster.connect(&self.db, &self.user, &self.password)
    }

    pub fn connect_superuser(&self) -> Result<Client, postgres::Error> {
        self.cluster.superuser(&self.db)
    }

    /// A new session of the owner.
    pub fn client(&self) -> Client {
        self.connect()
            .unwrap_or_else(|error| panic!("no session in \"{}\": {}", self.db, describe(&error)))
    }

    /// A new session of the superuser in this database.
    pub fn superuser(&self) -> Client {
        self.connect_superuser()
            .unwrap_or_else(|error| panic!("no session in \"{}\": {}", self.db, describe(&error)))
    }

    /// A new session of the owner under this `application_name`.
    pub fn client_named(&self, application_name: &str) -> Client {
        self.cluster
            .connect_as(&self.db, &self.user, &self.password, application_name)
            .unwrap_or_else(|error| panic!("no session in \"{}\": {}", self.db, describe(&error)))
    }

    /// A new session of the owner whose notices and warnings are kept.
    pub fn client_with_notices(&self) -> (Client, Notices) {
        let notices = Notices::default();
        let kept = notices.clone();
        let client = self
            .cluster
            .config(&self.db, &self.user, &self.password)
            .notice_callback(move |notice| kept.lock().expect("notices").push(notice))
            .connect(NoTls)
            .unwrap_or_else(|error| panic!("no session in \"{}\": {}", self.db, describe(&error)));
        (client, notices)
    }

    /// Runs statements in a session of the owner's own, ended afterwards.
    pub fn exec(&self, sql: &str) {
        self.client()
            .batch_execute(sql)
            .unwrap_or_else(|error| panic!("{}: {sql}", describe(&error)));
    }

    /// As `exec`, as superuser.
    pub fn exec_superuser(&self, sql: &str) {
        self.superuser()
            .batch_execute(sql)
            .unwrap_or_else(|error| panic!("{}: {sql}", describe(&error)));
    }

    /// The first column of the only row, as the superuser sees it.
    pub fn query_one<T: FromSqlOwned>(&self, sql: &str) -> T {
        let row = self.superuser().query_one(sql, &[]);
        row.unwrap_or_else(|error| panic!("{}: {sql}", describe(&error)))
            .get(0)
    }

    /// Sum of the rows' hashes and their number, for a table in the owner's schema. As superuser, so
    /// that it works while the owner may not log in.
    pub fn checksum(&self, table: &str) -> Result<(i64, i64), postgres::Error> {
        let schema = &self.user;
        let sql = format!(
            "select coalesce(sum(hashtext(t.*::text)), 0)::bigint, count(*) from {schema}.{table} t"
        );
        let row = self.connect_superuser()?.query_one(&sql, &[])?;
        Ok((row.get(0), row.get(1)))
    }

    /// How many changes wait here for delivery.
    pub fn queued(&self) -> Result<i64, postgres::Error> {
        Ok(self
            .connect_superuser()?
            .query_one("select count(*) from sync_err_rec", &[])?
            .get(0))
    }

    /// A server of that name, owned by this side's role, that leads to `port`, with a user mapping
    /// for the same role. `options` are further options of the server.
    pub fn link(&self, to: &Side, port: u16, server: &str, options: &[(&str, &str)]) -> Result<()> {
        let mut list = format!("host '127.0.0.1', port '{port}', dbname '{}'", to.db);
        for (name, value) in options {
            write!(list, ", {name} '{}'", value.replace('\'', "''"))?;
        }
        let Side { user, password, .. } = to;
        Ok(self.connect()?.batch_execute(&format!(
            "create server {server} foreign data wrapper pg_rowsync options ({list});
             create user mapping for current_user server {server}
               options (user '{user}', password '{password}')"
        ))?)
    }
}

/// The same table under two names, one on each side, without triggers.
pub fn create_recipe_tables(left: &Side, right: &Side) -> Result<()> {
    for (side, table) in [left, right].into_iter().zip(RECIPE_TABLES) {
        side.connect()?.batch_execute(&format!(
            "create table {table} (pk1 int, pk2 text, info text, crt_time timestamp,
               mod_time timestamp, primary key (pk1, pk2))"
        ))?;
    }
    Ok(())
}

/// Triggers on both recipe tables, so that each side is a master. Each has a server `server`.
pub fn create_recipe_triggers(left: &Side, right: &Side, server: &str) -> Result<()> {
    let [left_table, right_table] = RECIPE_TABLES;
    for (side, table, to, target) in [
        (left, left_table, right, right_table),
        (right, right_table, left, left_table),
    ] {
        let schema = &to.user;
        side.connect()?.batch_execute(&format!(
            r#"create trigger {table}_sync_dml after insert or update or delete on {table}
                 for each row
                 execute function sync_dml('{server}', '{schema}', '{target}', '{{"mode": "async"}}');
               create trigger {table}_sync_truncate after truncate on {table}
                 for each statement execute function sync_dml('{server}', '{schema}', '{target}')"#
        ))?;
    }
    Ok(())
}

/// What the server said, or else what went wrong on the way to it.
pub fn describe(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{} {}", said.code().code(), said.message()),
        None => error.to_string(),
    }
}
