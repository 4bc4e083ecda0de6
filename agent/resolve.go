package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// explainDNS adds what is missing where a system tells programs of no name server.
func explainDNS(err error, resolver *net.Resolver) error {
	var dns *net.DNSError
	if resolver != nil || os.PathSeparator != '/' || !errors.As(err, &dns) {
		return err
	}
	if _, missing := os.Stat("/etc/resolv.conf"); !errors.Is(missing, os.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w; this system has no /etc/resolv.conf, as Android: name a name server, such as --dns 9.9.9.9", err)
}
