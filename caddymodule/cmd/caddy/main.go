// Command caddy is Caddy with its standard modules and iottunnel, as xcaddy
// would build it: for development, the demo and the tests.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/iottunnel/iottunnel/caddymodule"
)

func main() {
	caddycmd.Main()
}
