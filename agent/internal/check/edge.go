package check

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// answer is what a server says to a request.
type answer struct {
	status int
	line   string            // status and reason, printable
	header map[string]string // the first of each, by lower-case name
	body   string            // its beginning
}

// Bounds of an answer, in bytes.
const (
	maxAnswer = 16 << 10 // its head
	maxBody   = 2 << 10  // of its body
)

// readAnswer reads the answer to a request. headOnly leaves what follows alone, if
// br has no more than the head to give.
func readAnswer(br *bufio.Reader, headOnly bool) (a answer, err error) {
	left := maxAnswer
	line := func() (string, error) {
		var b strings.Builder
		for {
			c, err := br.ReadByte()
			if err != nil {
				return "", err
			}
			if left--; left < 0 {
				return "", errors.New("its head is too long")
			}
			if c == '\n' {
				return strings.TrimSuffix(b.String(), "\r"), nil
			}
			b.WriteByte(c)
		}
	}
	first, err := line()
	if err != nil {
		return a, err
	}
	version, rest, _ := strings.Cut(first, " ")
	code, _, _ := strings.Cut(rest, " ")
	a.line = printable(rest, 80)
	if a.status, err = strconv.Atoi(code); err != nil || !strings.HasPrefix(version, "HTTP/1.") || len(code) != 3 {
		return a, fmt.Errorf("what comes back is not HTTP: %q", printable(first, 40))
	}
	a.header = make(map[string]string)
	for {
		text, err := line()
		if err != nil {
			return a, err
		}
		if text == "" {
			break
		}
		name, value, _ := strings.Cut(text, ":")
		if name = strings.ToLower(name); a.header[name] == "" {
			a.header[name] = strings.TrimSpace(value)
		}
	}
	if !headOnly && a.status != 101 {
		length, err := strconv.Atoi(a.header["content-length"])
		if err != nil || length > maxBody || length < 0 {
			length = maxBody
		}
		// As much as comes: the status has been read.
		body, _ := io.ReadAll(io.LimitReader(br, int64(length)))
		a.body = string(body)
	}
	return a, nil
}

// said is the error that an edge names in an answer; ok is false when the answer is
// no edge's.
func (a answer) said() (code, message string, ok bool) {
	body := wire.Texts([]byte(a.body)) // pages of others are no JSON
	code = a.header[strings.ToLower("Iottunnel-Error")]
	if code == "" {
		code = body["error"]
	}
	return printable(code, 40), printable(body["message"], 200), code != ""
}

// probe asks for a control socket without saying for which ports, and without a
// credential: no edge gives one.
func (w *way) probe(conn net.Conn) (answer, error) {
	_ = conn.SetDeadline(time.Now().Add(handshakeTime)) // if it fails, so does the next call
	query := url.Values{"device": {w.Config.Device}}.Encode()
	_, err := fmt.Fprintf(conn, "GET %s?%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: iottunnel-agent check\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: %s\r\n\r\n",
		wire.ControlPath, query, w.url.Host, wire.Subprotocol)
	if err != nil {
		return answer{}, err
	}
	return readAnswer(bufio.NewReader(conn), false)
}

// ask is probe, once for each way.
func (w *way) ask(conn net.Conn) (answer, error) {
	if w.asked == nil {
		a, err := w.probe(conn)
		w.asked = func() (answer, error) { return a, err }
	}
	return w.asked()
}

// upgrade sees whether the headers of a WebSocket handshake come through to an edge.
func (w *way) upgrade(context.Context) (Finding, bool) {
	began := w.now()
	a, err := w.ask(w.conn)
	w.date = a.header["date"]
	return w.judge(a, err, took(began, w.now())), true
}

// judge reads an answer to probe.
func (w *way) judge(a answer, err error, took string) Finding {
	code, message, edge := a.said()
	var remote *net.OpError
	const stripped = "something on the way takes the header Upgrade away, as proxies do that know no WebSockets: "
	versions := a.header[strings.ToLower(wire.VersionsHeader)]
	cure := "use wss://, which it cannot look into"
	if secureURL(w.url) {
		cure = "have it let WebSockets through to " + w.url.Hostname() + " (it is behind the TLS, so at the edge: a load balancer, or a proxy that inspects TLS)"
	}
	switch {
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return failure("something on the way cuts WebSocket handshakes: "+cure+"; if the edge asks for a client certificate, check --client-cert", "the connection is cut instead of an answer to the handshake")
	case errors.As(err, &remote) && remote.Op == alertOp: // TLS 1.3 tells after the handshake
		return failure("give --client-cert and --client-key that the edge accepts", "the edge ends TLS: %v", remote.Err)
	case err != nil:
		return failure("check that "+w.server+" is an iottunnel edge", "no answer to the handshake: %v", err)
	case edge && code == string(wire.UpgradeRequired) && versions != "" && !hasVersion(versions):
		return failure("use an agent of the edge's age", "the edge speaks other versions of the protocol: %s", printable(versions, 60))
	case edge && code == string(wire.UpgradeRequired):
		return failure(stripped+cure, "the edge got the request, but no WebSocket handshake")
	case edge && code == string(wire.BadRequest) && strings.Contains(message, "Sec-WebSocket-Protocol"):
		return failure("something on the way changes the headers of WebSocket handshakes: "+cure, "the edge got the handshake without Sec-WebSocket-Protocol")
	case edge && (code == string(wire.BadRequest) || code == string(wire.Unauthorized)):
		return Finding{Verdict: OK, Text: "an edge answers, and WebSocket handshakes reach it (" + took + ")"}
	case edge && code == string(wire.Forbidden):
		return Finding{Verdict: Failed, Cause: Refused, Text: "the edge forbids it: " + message, Cure: "use wss://; or, on a network that you trust, have the edge configured with allow_plaintext"}
	case edge && (code == string(wire.TooMany) || code == string(wire.Unavailable)):
		return failure("try again in a minute; if it stays, see the edge's log", "the edge cannot serve now: %s %s", a.line, message)
	case edge:
		return failure("see the edge's log", "the edge answers %s: %s %s", a.line, code, message)
	}
	return w.stranger(a)
}

// hasVersion reports whether a list of versions has ours.
func hasVersion(list string) bool {
	for v := range strings.SplitSeq(list, ",") {
		if strings.TrimSpace(v) == wire.Versions {
			return true
		}
	}
	return false
}

// stranger judges the answer of a server that is no edge.
func (w *way) stranger(a answer) Finding {
	const place = "check host and port of --server: it has to be a site with `iottunnel agents`"
	switch location := printable(a.header["location"], 100); {
	case a.status == 101:
		return failure(place, "a WebSocket server answers, but no iottunnel edge")
	case a.status/100 == 3 && strings.HasPrefix(location, "https://") && !secureURL(w.url):
		return failure("use wss:// instead of "+w.url.Scheme+"://", "the server sends us to %s", location)
	case a.status/100 == 3:
		return failure("a login page of a Wi-Fi does so: log in, or use another network; else "+place, "something on the way, or the server, sends us to %s", location)
	case a.status == 400 && !secureURL(w.url) && strings.Contains(strings.ToLower(a.body), "https"):
		return failure("use wss:// instead of "+w.url.Scheme+"://", "the server speaks TLS at this port")
	case a.status == 502, a.status == 503, a.status == 504:
		return failure("a load balancer or proxy in front of the edge cannot reach it: look there", "answered %s, not by an edge", a.line)
	case a.status == 407, a.status == 511:
		return failure("a proxy on the way wants you to log in: name it with --proxy, or log in", "answered %s, not by an edge", a.line)
	}
	return failure(place, "a web server answers %s, but no iottunnel edge", a.line)
}

// tunnel does what a run would do, and leaves.
func (w *way) tunnel(ctx context.Context) (Finding, bool) {
	w.conn.Close()
	w.conn = nil
	if w.Running != nil {
		if r, ok := w.Running(ctx); ok && r.Device == w.Config.Device && r.State == string(agent.Connected) {
			return Finding{Verdict: OK, Text: fmt.Sprintf("held by the agent that runs here, as %s at %s; not disturbed", printable(r.Name, 253), printable(r.Server, 200))}, true
		}
	}
	ctx, cancel := context.WithTimeout(ctx, tunnelTime)
	defer cancel()
	c := w.Config
	c.Servers, c.Once, c.Grace = []string{w.server}, true, -1
	var up *agent.Up
	c.OnDown = nil
	c.OnUp = func(u agent.Up) {
		if up == nil {
			up = &u
		}
		cancel()
	}
	a, err := agent.New(c)
	connected := false
	if err == nil {
		connected, err = a.Probe(ctx)
	}
	if err == nil && !connected { // so nobody loses anything
		err = a.Run(ctx)
	}
	switch {
	case connected:
		return w.held(), true
	case up != nil:
		return welcome(*up), true
	case err == nil:
		return failure("see the edge's log; something on the way may hold WebSocket messages back", "no tunnel within %v", tunnelTime), true
	}
	return w.refusal(err), true
}

// held is what is found of a device that is connected.
func (w *way) held() Finding {
	return Finding{
		Verdict: OK, Text: "the edge accepts the credential; " + w.Config.Device + " is connected already, and was not disturbed",
		Cure: "if that is not the agent of this very device, another one has its id: give each an id of its own, such as --device cam-{mac}",
	}
}

// welcome tells where visitors find the device.
func welcome(up agent.Up) Finding {
	f := Finding{Verdict: OK, Text: "the edge takes this device as " + up.Hostname}
	var none []string
	for _, p := range up.Ports {
		name := fmt.Sprintf("%d/%s", p.Number, p.Kind)
		if p.URL == "" {
			none = append(none, name)
			continue
		}
		f.Text += "; " + name + " " + p.URL
	}
	if none != nil {
		f.Verdict = Warning
		f.Text += "; " + strings.Join(none, ", ") + " not from outside"
		f.Cure = "public TCP ports are off at the edge (tcp_ports in its configuration), or all taken"
	}
	return f
}

// refusal judges why there is no tunnel.
func (w *way) refusal(err error) Finding {
	var refused *agent.RefusedError
	var closed *agent.ClosedError
	var hop *agent.HopError
	no := Finding{Verdict: Failed, Cause: Refused}
	switch {
	case errors.As(err, &refused):
		return w.refused(refused)
	case errors.As(err, &closed):
		no.Text = closed.Error()
		switch closed.Code {
		case wire.CloseRevoked:
			no.Cure = "the edge's operator has revoked this device: ask for a new token"
		case wire.CloseReplaced:
			no.Cure = "another device has this id: give each an id of its own, such as --device cam-{mac}"
		case wire.CloseExpired:
			no.Cure = "put a token that is valid into the file of --token-file"
		default:
			no.Cause, no.Cure = Unreachable, "try again; if it stays, see the edge's log"
		}
		return no
	case errors.As(err, &hop) && hop.Hop == "ready":
		return failure("a proxy on the way holds WebSocket messages back: have it let them through, or go around it", "the edge agrees to a WebSocket, and then nothing comes: %v", hop.Err)
	}
	return failure("try again; if it stays, see the edge's log", "%v", err)
}

// refused judges the edge's answer to a handshake with the credential.
func (w *way) refused(e *agent.RefusedError) Finding {
	f := Finding{Verdict: Failed, Cause: Refused, Text: e.Error()}
	if !e.Final() {
		f.Cause = Unreachable
	}
	switch wire.Code(e.Code) {
	case wire.DeviceConnected:
		return w.held() // since it was asked
	case wire.Unauthorized:
		f.Cure = "the edge does not know " + w.Config.Device + " with this token: compare both with what its operator has; a token is also wrong once it was rotated or revoked"
		if w.Config.Token == "" && w.Config.TokenSource == nil {
			f.Text += "; no token was sent"
			f.Cure = "give --token-file, or IOTTUNNEL_TOKEN"
		}
	case wire.Forbidden:
		f.Cure = "this token is good, but not for this: see the message, and the edge's log"
	case wire.TooMany, wire.Unavailable:
		f.Cure = "try again in a minute; if it stays, see the edge's log"
	case wire.BadRequest:
		f.Cure = "the edge does not understand this agent: see the message"
	default:
		f.Cure = "see the edge's log"
	}
	return f
}
