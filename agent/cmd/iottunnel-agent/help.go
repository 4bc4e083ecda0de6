package main

// help is what --help prints for a command; empty: for all.
func help(command string) string {
	switch command {
	case "run":
		return runHelp
	case "version":
		return "iottunnel-agent version\n\nPrints the version of this program, of Go, and the platform.\n"
	}
	return mainHelp
}

const mainHelp = `iottunnel-agent makes ports of this device reachable through an iottunnel edge.

  iottunnel-agent run      keeps a tunnel to an edge; what you want
  iottunnel-agent version  prints the version

A web server on port 8080 of this device gets a URL of its own:

  iottunnel-agent run --server wss://edge.example.com --device cam-17 \
      --token-file /etc/iottunnel/token --forward 80=127.0.0.1:8080

See iottunnel-agent run --help for more.
`

const runHelp = `iottunnel-agent run --server URL --device ID --token-file FILE --forward FORWARD

Keeps a tunnel to an edge, so that visitors of the edge reach the forwarded
ports. Each time the tunnel is up, standard output gets a line per port:

  80/http https://LABEL.devices.example.net/
  22/tcp tcp://edge-1.example.com:20022

and 22/tcp - for a port that cannot be reached from outside.

Examples

  A web server on this device, one beside it, and ssh:
    iottunnel-agent run --server wss://edge.example.com --device cam-17 \
        --token-file /etc/iottunnel/token \
        --forward 80=127.0.0.1:8080 --forward 8081/http=192.168.1.20:80 --forward 22

  The same from a file, agent.yaml; flags win over it:
    server: wss://edge.example.com
    device: cam-17
    token_file: /etc/iottunnel/token
    forward:
      - 80=127.0.0.1:8080
      - 8081/http=192.168.1.20:80
      - 22
    iottunnel-agent run -c agent.yaml

  Out of a network that has a proxy:
    iottunnel-agent run -c agent.yaml --proxy http://user:password@proxy.example.com:3128

Flags

  -c, --config FILE       YAML with the names below, _ for -. Flags win over
                          IOTTUNNEL_NAME in the environment, which wins over the file
  --server URL            of the edge: wss://HOST[:PORT]. May be repeated: they are
                          tried in random order. ws:// is for loopback only, or with
                          --allow-plaintext
  --device ID             of this device: at most 56 of a-z, 0-9, and - inside
  --token-file FILE       holds the device's secret, read before each attempt; or
                          IOTTUNNEL_TOKEN in the environment
  --forward PORT[/KIND][=HOST:PORT][,OPTION=VALUE]
                          makes PORT reachable, as served at HOST:PORT (default:
                          PORT of this device). May be repeated. KIND is http, https
                          or tcp (default: http for 80, https for 443, else tcp).
                          The option proxy_protocol=v2 tells the service who visits
  --ca FILE               certificates to trust instead of the system's, in PEM
  --client-cert FILE, --client-key FILE
                          to show to the edge, in PEM
  --insecure-skip-verify  trusts any edge. Never outside a test
  --allow-plaintext       lets the token travel without TLS
  --proxy URL             http:// or https:// proxy; else HTTPS_PROXY, HTTP_PROXY and
                          NO_PROXY of the environment
  --profile NAME          full (default), or basic: one WebSocket per visitor
                          connection and no more
  --heartbeat DURATION    between pings, 10s to 15m; by default the edge decides, 25s
                          unless it is configured
  --redirect-to DOMAIN    to whose hosts an edge may also send this device. May be
                          repeated
  --dns ADDR[,ADDR]       name servers to ask instead of the system's
  --max-backoff DURATION  between attempts to connect, 1s to 1h (default 30s)
  --log-level LEVEL       debug, info (default), warn or error
  --log-format FORMAT     text (default) or json, on standard error
  --once                  ends with the first failure instead of trying again

Exit status: 0 stopped by a signal; 2 usage or configuration; with --once,
3 refused by the edge, 4 no edge reached.
`
