package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// lookUp asks for the addresses of the first host on the way.
func (w *way) lookUp(ctx context.Context) (Finding, bool) {
	first, whose := w.url, "the edge"
	if w.proxy != nil {
		first, whose = w.proxy, "the proxy"
	}
	host := first.Hostname()
	_, port, _ := net.SplitHostPort(hostPort(first))
	if addr, err := netip.ParseAddr(host); err == nil {
		w.addrs = []string{net.JoinHostPort(host, port)}
		return Finding{Verdict: OK, Text: addr.String() + " is an address: nothing to look up"}, true
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	resolver, began := w.Config.Resolver, w.now()
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	addrs, err := resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return w.noName(whose, host, err), true
	}
	var texts []string
	for _, a := range addrs {
		a = a.Unmap()
		texts = append(texts, a.String())
		w.addrs = append(w.addrs, net.JoinHostPort(a.String(), port))
	}
	f := Finding{Verdict: OK, Text: fmt.Sprintf("%s is %s (%s)", host, strings.Join(texts, ", "), took(began, w.now()))}
	if a := addrs[0].Unmap(); (a.IsUnspecified() || a.IsLoopback()) && host != "localhost" && !strings.HasSuffix(host, ".localhost") {
		f.Verdict = Warning
		f.Cure = "this address is the device itself: a filter, or /etc/hosts, answers for the name; look there, or ask another name server with --dns"
	}
	return f, true
}

// noName says why a name has no address.
func (w *way) noName(whose, host string, err error) Finding {
	var dns *net.DNSError
	if !errors.As(err, &dns) {
		return failure("check the network of this device", "%s, %s: %v", whose, host, err)
	}
	asked := "the name server"
	switch {
	case w.Config.Resolver != nil: // the error names the system's all the same
		asked += " of --dns"
	case dns.Server != "":
		asked += " " + dns.Server
	}
	switch {
	case dns.IsNotFound:
		return failure("check the spelling; if the name is right, this network's name server hides it: ask another one with --dns, such as --dns 9.9.9.9",
			"no host %s: %s does not know it", host, asked)
	case noResolvConf():
		return failure("this system has no /etc/resolv.conf, as Android: name a name server with --dns, such as --dns 9.9.9.9", "%s: %s", host, dns.Err)
	case dns.IsTimeout:
		return failure("check that this device has a network; ask another name server with --dns", "%s: %s does not answer", host, asked)
	}
	return failure("check the network of this device, and its name server (/etc/resolv.conf, or --dns)", "%s: %s: %s", host, asked, printable(dns.Err, 200))
}

func noResolvConf() bool {
	_, err := os.Stat("/etc/resolv.conf")
	return errors.Is(err, os.ErrNotExist) && os.PathSeparator == '/'
}

// attempt is a connection to an address.
type attempt struct {
	addr string
	conn net.Conn
	err  error
	took string
}

// connect tries every address, and keeps the first connection of those that work.
func (w *way) connect(ctx context.Context) (Finding, bool) {
	const most = 8 // more addresses than that say nothing new
	attempts := make([]attempt, min(len(w.addrs), most))
	var wg sync.WaitGroup
	began := w.now()
	for i := range attempts {
		a := &attempts[i]
		a.addr = w.addrs[i]
		wg.Go(func() {
			d := net.Dialer{Timeout: connectTime}
			a.conn, a.err = d.DialContext(ctx, "tcp", a.addr)
			a.took = took(began, w.now())
		})
	}
	wg.Wait()
	var good, bad []string
	var first error
	for _, a := range attempts {
		switch {
		case a.err != nil:
			bad = append(bad, a.addr+" "+because(a.err))
			if first == nil {
				first = a.err
			}
			continue
		case w.conn == nil:
			w.conn = a.conn
		default:
			a.conn.Close()
		}
		good = append(good, a.addr+" in "+a.took)
	}
	if w.conn == nil {
		return failure(w.cureOf(first), "%s", strings.Join(bad, "; ")), true
	}
	f := Finding{Verdict: OK, Text: strings.Join(good, ", ")}
	if bad != nil {
		f.Verdict = Warning
		f.Text += "; but not " + strings.Join(bad, ", ")
		f.Cure = "the agent uses what works; take the other address out of DNS, or mend the way to it"
	}
	return f, true
}

// because is a failed connection in a few words.
func because(err error) string {
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return "does not answer"
	case errors.As(err, &errno):
		return "says: " + errno.Error()
	}
	return "fails: " + err.Error()
}

// cureOf is the cure for a connection that cannot be made.
func (w *way) cureOf(err error) string {
	what := "--server"
	if w.proxy != nil {
		what = "--proxy"
	}
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there: check host and port of " + what + ", and whether it runs; or a firewall refuses: ask for a way out to this port"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "this device has no way there: check cable or radio, its address, and its default route"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "a firewall drops it, or nothing has this address: check host and port of " + what + "; most networks let out only ports 443 and 80, and some only a --proxy"
	}
	return "check the network of this device, and host and port of " + what
}

// limited makes every call on the connection so far fail after some time.
func (w *way) limited(limit time.Duration) {
	_ = w.conn.SetDeadline(time.Now().Add(limit)) // if it fails, so does the next call
}
