"""The console: a read-only web page of a `local` stack, on loopback.

Two processes. `server` answers requests: it checks who asks (`access`), serves the page's own files, and passes the
rest to a child process (`worker`), which reads the stack through `observatory.operations` (`readings`), draws panels
(`charts`) and renders pages (`pages`). The child starts with the first page and ends a minute after the last one, so
that a console without a page costs little, and a reading that hangs or fails ends nothing else.

Nothing here changes the stack. Where something can be done, a page shows the command that does it.
"""
