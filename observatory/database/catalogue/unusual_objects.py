"""Queries of the objects that the product's migrations do not make, except sequences, but own migrations and hands may.

Owns the queries; `observatory.database.catalogue.objects` completes them with the conditions in braces, and runs them.
"""

from __future__ import annotations

# Each of these is empty for a database that has only what the product's migrations make, except sequences.
UNUSUAL_OBJECTS = (
    """
    SELECT 'schema', n.nspname, 'schema' FROM pg_namespace n
    WHERE n.nspname NOT IN ('public', 'observatory') AND {of_users}
    """,
    """
    SELECT 'materialized view', n.nspname || '.' || c.relname, pg_get_viewdef(c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'm' AND {of_migrations}
    """,
    """
    SELECT 'sequence', n.nspname || '.' || c.relname,
           format('%s from %s by %s, %s to %s%s', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin,
                  s.seqmax, CASE WHEN s.seqcycle THEN ', cycles' ELSE '' END)
           || coalesce((SELECT ', of ' || t.relname || '.' || a.attname
                        FROM pg_depend d JOIN pg_class t ON t.oid = d.refobjid
                        JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
                        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')), '')
    FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE {of_migrations}
    """,
    """
    SELECT 'type', n.nspname || '.' || t.typname,
           CASE t.typtype
           WHEN 'e' THEN (SELECT 'enum ' || string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder)
                          FROM pg_enum WHERE enumtypid = t.oid)
           WHEN 'd' THEN 'domain ' || format_type(t.typbasetype, t.typtypmod)
               || CASE WHEN t.typnotnull THEN ' not null' ELSE '' END
               || coalesce(' default ' || t.typdefault, '')
               || coalesce((SELECT ' ' || string_agg(pg_get_constraintdef(oid), ' ' ORDER BY conname)
                            FROM pg_constraint WHERE contypid = t.oid AND contype = 'c'), '')
           WHEN 'c' THEN (SELECT 'row of ' || string_agg(
                                     attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
                          FROM pg_attribute WHERE attrelid = t.typrelid AND attnum > 0 AND NOT attisdropped)
           ELSE 'range' END
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE (t.typtype IN ('e', 'd', 'r')
           OR t.typtype = 'c' AND EXISTS (SELECT FROM pg_class WHERE oid = t.typrelid AND relkind = 'c'))
      AND {of_users} AND {type_not_of_extension}
    """,
    """
    SELECT 'statistics', n.nspname || '.' || e.stxname, pg_get_statisticsobjdef(e.oid)
    FROM pg_statistic_ext e JOIN pg_namespace n ON n.oid = e.stxnamespace JOIN pg_class c ON c.oid = e.stxrelid
    WHERE {of_migrations}
    """,
    # Not TimescaleDB's own, nor the one that records administrators, which `grant_access` makes and checks.
    """
    SELECT 'trigger', n.nspname || '.' || c.relname || '.' || t.tgname,
           pg_get_triggerdef(t.oid)
           || CASE t.tgenabled WHEN 'O' THEN '' WHEN 'D' THEN ' (disabled)' WHEN 'R' THEN ' (replica)' ELSE ' (always)'
              END
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE NOT t.tgisinternal AND p.pronamespace::regnamespace::text !~ '^(_timescaledb_|audit$)' AND {any_table}
    """,
    # Those of foreign keys, where they are switched off.
    """
    SELECT DISTINCT 'trigger', n.nspname || '.' || c.relname || '.foreign keys and constraints', 'disabled'
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE t.tgisinternal AND t.tgenabled = 'D' AND {any_table}
    """,
    """
    SELECT 'rule', n.nspname || '.' || c.relname || '.' || r.rulename,
           pg_get_ruledef(r.oid) || CASE r.ev_enabled WHEN 'O' THEN '' ELSE ' (' || r.ev_enabled::text || ')' END
    FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE r.rulename <> '_RETURN' AND {any_table}
    """,
    """
    SELECT 'row security', n.nspname || '.' || c.relname,
           concat_ws(' and ', CASE WHEN c.relrowsecurity THEN 'enabled' END,
                     CASE WHEN c.relforcerowsecurity THEN 'forced' END)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE (c.relrowsecurity OR c.relforcerowsecurity) AND {any_table}
    """,
    """
    SELECT 'row security policy', n.nspname || '.' || c.relname || '.' || p.polname,
           format('%s for %s to %s using %s with check %s',
                  CASE WHEN p.polpermissive THEN 'permissive' ELSE 'restrictive' END, p.polcmd,
                  (SELECT string_agg(CASE role WHEN 0 THEN 'public' ELSE role::regrole::text END, ', ' ORDER BY role)
                   FROM unnest(p.polroles) AS role),
                  pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
    FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE {any_table}
    """,
    """
    SELECT 'event trigger', e.evtname, format('on %s, %s%s', e.evtevent, e.evtfoid::regproc,
           CASE e.evtenabled WHEN 'O' THEN '' ELSE ' (' || e.evtenabled::text || ')' END)
    FROM pg_event_trigger e WHERE {event_trigger_not_of_extension}
    """,
    """
    SELECT 'inheritance', n.nspname || '.' || c.relname || ' of ' || i.inhparent::regclass,
           coalesce(pg_get_expr(c.relpartbound, c.oid), 'inherits')
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f') AND {of_migrations}
    """,
    """
    SELECT 'persistence', n.nspname || '.' || c.relname, 'unlogged'
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relpersistence = 'u' AND c.relkind IN ('r', 'p', 'm') AND {of_migrations}
    """,
    """
    SELECT 'storage', n.nspname || '.' || c.relname,
           concat_ws('; ', (SELECT string_agg(option, ', ' ORDER BY option) FROM unnest(c.reloptions) AS option),
                     'in tablespace ' || (SELECT spcname FROM pg_tablespace WHERE oid = c.reltablespace))
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE (c.reloptions IS NOT NULL OR c.reltablespace <> 0) AND c.relkind IN ('r', 'p', 'm') AND {of_migrations}
    """,
    """
    SELECT 'storage', n.nspname || '.' || c.relname || '.' || a.attname,
           concat_ws('; ', CASE WHEN a.attstorage <> t.typstorage THEN 'storage ' || a.attstorage::text END,
                     CASE WHEN a.attcompression <> '' THEN 'compression ' || a.attcompression::text END,
                     CASE WHEN a.attcollation <> t.typcollation THEN 'collation ' || a.attcollation::regcollation END)
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'm') AND {of_migrations}
      AND (a.attstorage <> t.typstorage OR a.attcompression <> '' OR a.attcollation <> t.typcollation)
    """,
    """
    SELECT 'owner', n.nspname || '.' || c.relname, pg_get_userbyid(c.relowner)::text
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relowner <> quote_ident(current_user)::regrole AND {of_migrations}
      AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    """,
    """
    SELECT 'owner', n.nspname || '.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
           pg_get_userbyid(p.proowner)::text
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE p.proowner <> quote_ident(current_user)::regrole AND {of_users} AND {routine_not_of_extension}
    """,
    # Not those that a stack's database has from its start.
    """
    SELECT 'extension', extname, 'in schema ' || extnamespace::regnamespace FROM pg_extension
    WHERE extname NOT IN ('plpgsql', 'timescaledb', 'pg_stat_statements', 'pg_cron')
    """,
    # Updates and deletes of a published table without a replica identity fail.
    """
    SELECT 'publication', p.pubname,
           CASE WHEN p.puballtables THEN 'of all tables' ELSE 'of some tables' END
           || coalesce((
               SELECT ', without a replica identity: ' || string_agg(t.tablename, ', ' ORDER BY t.tablename)
               FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
               JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
               WHERE t.pubname = p.pubname AND (p.pubupdate OR p.pubdelete) AND {of_migrations}
                 AND (c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS (
                     SELECT FROM pg_constraint WHERE conrelid = c.oid AND contype = 'p'))), '')
    FROM pg_publication p
    """,
    """
    SELECT 'foreign server', s.srvname, 'of ' || w.fdwname
    FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
    WHERE {server_not_of_extension}
    """,
    """
    SELECT 'cast', format('%s AS %s', format_type(castsource, NULL), format_type(casttarget, NULL)),
           CASE castcontext WHEN 'i' THEN 'implicit' WHEN 'a' THEN 'in assignments' ELSE 'explicit' END
    FROM pg_cast k WHERE k.oid >= 16384 AND {cast_not_of_extension}
    """,
    """
    SELECT 'operator',
           format('%I.%s (%s, %s)', n.nspname, o.oprname,
                  CASE o.oprleft WHEN 0 THEN 'NONE' ELSE format_type(o.oprleft, NULL) END,
                  format_type(o.oprright, NULL)), 'by ' || o.oprcode
    FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace
    WHERE {of_users} AND {operator_not_of_extension}
    """,
    """
    SELECT 'replica identity', n.nspname || '.' || c.relname,
           CASE c.relreplident WHEN 'f' THEN 'full' WHEN 'n' THEN 'nothing' ELSE 'an index' END
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relreplident <> 'd' AND c.relkind IN ('r', 'p') AND {of_migrations}
    """,
    """
    SELECT 'view option', n.nspname || '.' || c.relname,
           (SELECT string_agg(option, ', ' ORDER BY option) FROM unnest(c.reloptions) AS option)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.reloptions IS NOT NULL AND c.relkind = 'v' AND {of_migrations}
    """,
    # Actions of users that TimescaleDB runs.
    """
    SELECT 'scheduled action', proc_schema || '.' || proc_name || ' every ' || schedule_interval,
           coalesce(config::text, 'no configuration') || CASE WHEN scheduled THEN '' ELSE ' (switched off)' END
    FROM timescaledb_information.jobs WHERE hypertable_name IS NULL AND proc_schema !~ '^_timescaledb_'
    """,
)
