package main

// commands are those there are, as errors list them.
const commands = "run, check, enroll, service, connect, ssh-config, version"

var helps = map[string]string{
	"run":        runHelp,
	"check":      checkHelp,
	"enroll":     enrollHelp,
	"service":    serviceHelp,
	"connect":    connectHelp,
	"ssh-config": connectHelp,
	"version":    "iottunnel-agent version\n\nPrints the version of this program, of Go, and the platform.\n",
}

// help is what --help prints for a command; empty: for all.
func help(command string) string {
	if text, ok := helps[command]; ok {
		return text
	}
	return mainHelp
}

// documented is command, if it has a help of its own.
func documented(command string) string {
	if _, ok := helps[command]; ok {
		return command
	}
	return ""
}

const mainHelp = `iottunnel-agent makes ports of this device reachable through an iottunnel edge.

  iottunnel-agent run         keeps a tunnel to an edge; what you want
  iottunnel-agent check       says which hop on the way works or fails, and the cure
  iottunnel-agent enroll      makes a claim code this device's own secret
  iottunnel-agent service     has the system run it: install, start, stop, status
  iottunnel-agent version     prints the version

and, on the computer of a technician:

  iottunnel-agent connect     reaches a port of a device, as for ssh
  iottunnel-agent ssh-config  prints what ssh needs to do so by itself

A web server on port 8080 of this device gets a URL of its own:

  iottunnel-agent run --server wss://edge.example.com --device cam-17 \
      --token-file /etc/iottunnel/token --forward 80=127.0.0.1:8080

If it does not come up, put check in the place of run. Once it does, put
service install there.

See iottunnel-agent COMMAND --help for more.
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

  One image for all devices: each has the id cam-b827eb0a0b0c, or the like:
    iottunnel-agent run -c agent.yaml --device cam-{mac}

  Out of a network that has a proxy:
    iottunnel-agent run -c agent.yaml --proxy http://user:password@proxy.example.com:3128

Flags

  -c, --config FILE       YAML with the names below, _ for -. Flags win over
                          IOTTUNNEL_NAME in the environment, which wins over the file
  --server URL            of the edge: wss://HOST[:PORT]. May be repeated: they are
                          tried in random order. ws:// is for loopback only, or with
                          --allow-plaintext
  --device ID             of this device: at most 56 of a-z, 0-9, and - inside. May
                          hold {mac}, {mac:eth0}, {serial}, {hostname} and
                          {machine_id}, which stand for what this machine has
  --token-file FILE       holds the device's secret, read before each attempt; or
                          IOTTUNNEL_TOKEN in the environment
  --forward PORT[/KIND][=HOST:PORT][,OPTION=VALUE]
                          makes PORT reachable, as served at HOST:PORT (default:
                          PORT of this device). May be repeated. KIND is http, https
                          or tcp (default: http for 80, https for 443, else tcp).
                          The option proxy_protocol=v2 tells the service who visits;
                          host=NAME, of kind http, tells it that NAME was asked for
  --ca FILE               certificates to trust instead of the system's, in PEM
  --client-cert FILE, --client-key FILE
                          to show to the edge, in PEM
  --insecure-skip-verify  trusts any edge. Never outside a test
  --allow-plaintext       lets the token travel without TLS
  --proxy URL             http:// or https:// proxy; else HTTPS_PROXY, HTTP_PROXY and
                          NO_PROXY of the environment
  --profile NAME          full (default); basic: one WebSocket per visitor connection
                          and no more; inline: one WebSocket for everything
  --heartbeat DURATION    between pings, 10s to 15m; by default the edge decides, 25s
                          unless it is configured. auto: the longest that the network
                          bears, found out by and by, where each byte costs money
  --redirect-to DOMAIN    to whose hosts an edge may also send this device. May be
                          repeated
  --dns ADDR[,ADDR]       name servers to ask instead of the system's, in this order.
                          Needed on Android, which names none to programs
  --max-backoff DURATION  between attempts to connect, 1s to 1h (default 30s)
  --status ADDR:PORT      where this device tells how it is: a page at /, /status
                          (JSON), /metrics (Prometheus), /ready (200 while the tunnel
                          is up, else 503) and /healthz. 127.0.0.1:9180 keeps it to
                          the device; by default it is off
  --log-level LEVEL       debug, info (default), warn or error
  --log-format FORMAT     text (default) or json, on standard error
  --once                  ends with the first failure instead of trying again

Exit status: 0 stopped by a signal; 2 usage or configuration; with --once,
3 refused by the edge, 4 no edge reached.
`

const checkHelp = `iottunnel-agent check, with the flags of run

Says of each hop between this device and its visitors whether it works, and of one
that fails what cures it: names, TCP, proxy, TLS, the clock, the WebSocket
handshake, the credential, and each service that is forwarded.

Examples

    iottunnel-agent check -c agent.yaml
    iottunnel-agent check --server wss://edge.example.com --device cam-17 \
        --token-file /etc/iottunnel/token --forward 80=127.0.0.1:8080

A tunnel that this device has is left alone: the edge says that the device is
connected, and that is as good. If it is not, check connects it for a moment, as run
would; its name and ports are those that run gets. With the --status of an agent that
runs here, check asks that one first.

Flags, besides those of iottunnel-agent run --help

  --output FORMAT         text (default) or json, on standard output

Exit status: 0 all works; 2 usage or configuration; 3 refused by the edge; 4 an edge,
or a service, was not reached.
`

const serviceHelp = `iottunnel-agent service install, with the flags of run
iottunnel-agent service start | stop | status | uninstall

Has the system run this program: systemd, OpenWrt's procd, OpenRC, launchd on macOS,
or Windows.

  install    has it started with the system, as run with the same flags; not now
  start      starts it now
  stop       stops it, until the system starts again
  status     says whether it runs, and where its log is
  uninstall  stops it and forgets it; files that it was given stay

Examples

    sudo iottunnel-agent service install -c /etc/iottunnel/agent.yaml
    sudo iottunnel-agent service start

  What would be installed, here or on another system:
    iottunnel-agent service install --print -c /etc/iottunnel/agent.yaml
    iottunnel-agent service install --print --manager procd -c /etc/iottunnel/agent.yaml

Under systemd (247 or later) the service has a user of its own without any rights.
systemd reads its files for it (configuration, token, certificates) whenever it
starts: restart it after you have changed one, or name a user who may read them.

Flags, besides those of iottunnel-agent run --help

  --user NAME             whom the service runs as
  --manager NAME          systemd, procd or openrc (Linux), launchd, windows; by
                          default the one that runs this system
  --print                 shows what install would write, and installs nothing

Exit status: 0 done; 1 it failed; 2 usage or configuration; of status: 0 running,
3 not running, 4 not installed.
`

const enrollHelp = `iottunnel-agent enroll --server URL --device ID --code CODE --token-file FILE

Makes a claim code, which serves once, the secret of this device. It is written to
FILE, which only this user can read, and which run takes with --token-file.

Example, in an image for many devices (the code is one for any new device):

    iottunnel-agent enroll --server wss://edge.example.com --device cam-{mac} \
        --code 7KQ2M-X04TB-9ZC6H-WD3NA --token-file /etc/iottunnel/token

Flags, besides --server, --device, --ca, --proxy, --dns and others of
iottunnel-agent run --help that say how the edge is reached

  --code CODE             of the edge's operator: caddy iottunnel code create
  --token-file FILE       where the secret is kept. One that is there stays
  --force                 replaces it

Exit status: 0 enrolled; 1 the secret could not be written; 2 usage or configuration;
3 refused by the edge; 4 no edge reached, or it cannot tell now: try again.
`

const connectHelp = `iottunnel-agent connect DEVICE:PORT --server URL --token-file FILE [--listen ADDR:PORT]
iottunnel-agent ssh-config DEVICE[:PORT] --server URL --token-file FILE

Reaches a port of a device from this computer, through its edge: it needs no public
port, and nobody else gets in. FILE holds the grant for it, which the edge's operator
makes: caddy iottunnel grant DEVICE:PORT --for 1h

connect joins standard input and output to the port, as a ProxyCommand of ssh does.
ssh-config (PORT is 22 there by default) prints the block that has ssh do so.

Examples

    iottunnel-agent ssh-config cam-17 --server wss://edge.example.com \
        --token-file ~/cam-17.grant >> ~/.ssh/config
    ssh root@cam-17                  and scp, sftp, rsync, git

  For other programs, a port of this computer:
    iottunnel-agent connect cam-17:5900 --server wss://edge.example.com \
        --token-file ~/cam-17.grant --listen 127.0.0.1:5900

Flags, besides --server, --token-file, --ca, --proxy, --dns and others of
iottunnel-agent run --help that say how the edge is reached

  --listen ADDR:PORT      of connect: serves connections to there, until a signal comes;
                          the first line of standard output is the address

Exit status: 0 both ends are done, or a signal came; 1 the connection was cut off;
2 usage or configuration; 3 refused by the edge; 4 edge, device or service not reached.
`
