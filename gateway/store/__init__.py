"""The database floor: tables, connections, migrations, and one file per aggregate."""
