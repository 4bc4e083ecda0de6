package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// parseForward reads PORT[/KIND][=HOST:PORT][,OPTION=VALUE…].
func parseForward(s string) (agent.Forward, error) {
	head, options, _ := strings.Cut(s, ",")
	port, target, given := strings.Cut(head, "=")
	p, err := wire.ParsePort(port)
	if err != nil {
		return agent.Forward{}, err
	}
	if !given {
		target = net.JoinHostPort("127.0.0.1", strconv.Itoa(int(p.Number)))
	}
	host, number, err := net.SplitHostPort(target)
	if _, numberErr := strconv.ParseUint(number, 10, 16); err != nil || numberErr != nil || host == "" {
		return agent.Forward{}, fmt.Errorf("%q is not HOST:PORT", target)
	}
	f := agent.Forward{Port: p.Number, Kind: agent.Kind(p.Kind), Target: target}
	if options == "" {
		return f, nil
	}
	seen := make(map[string]bool)
	for option := range strings.SplitSeq(options, ",") {
		name, value, _ := strings.Cut(option, "=")
		if seen[name] {
			return agent.Forward{}, fmt.Errorf("option %s is given twice", name)
		}
		seen[name] = true
		switch name {
		case "proxy_protocol":
			if value != "v2" {
				return agent.Forward{}, errors.New("proxy_protocol is v2 or absent")
			}
			f.ProxyProtocol = true
		case "host":
			if value == "" {
				return agent.Forward{}, errors.New("host wants a name, such as host=camera.local")
			}
			f.Host = value
		case "pin":
			return agent.Forward{}, errors.New("there is no option pin: the edge speaks TLS to the service, and version 1 of the protocol cannot tell it whom to expect; " +
				"leave it out, and forward to this device itself or over a network that you trust")
		default:
			return agent.Forward{}, fmt.Errorf("no option %q; there are: host=NAME, proxy_protocol=v2", name)
		}
	}
	return f, nil
}
