//go:build unix

package service

import "strings"

// procd is what starts services on OpenWrt.
func procd(run func(...string) (string, error)) Manager {
	const path = "/etc/init.d/" + Name
	return &scripted{
		name: "procd", path: path, mode: 0o755, render: procdScript, run: run,
		enable:  [][]string{{path, "enable"}},
		disable: [][]string{{"-" + path, "stop"}, {path, "disable"}},
		start:   [][]string{{path, "start"}},
		stop:    [][]string{{path, "stop"}},
		log:     "logread -e " + Name,
		state: func(run func(...string) (string, error)) (State, string, error) {
			if _, err := run(path, "running"); err != nil {
				return Stopped, "", nil
			}
			return Running, "", nil
		},
	}
}

func procdScript(s Spec) (string, error) {
	var command strings.Builder
	command.WriteString(shell(s.Program))
	for _, a := range s.Args {
		command.WriteString(" \\\n\t\t" + shell(a))
	}
	user := ""
	if s.User != "" {
		user = "\tprocd_set_param user " + shell(s.User) + "\n"
	}
	return `#!/bin/sh /etc/rc.common
# ` + written + `
# ` + description + `

USE_PROCD=1
START=95
STOP=10

start_service() {
	procd_open_instance
	procd_set_param command ` + command.String() + `
	procd_set_param respawn 3600 10 0 # for ever, 10 s apart
	procd_set_param stdout 1
	procd_set_param stderr 1
	procd_set_param no_new_privs 1
` + user + `	procd_close_instance
}
`, nil
}

// openrc is what starts services on Alpine, among others.
func openrc(run func(...string) (string, error)) Manager {
	const path = "/etc/init.d/" + Name
	return &scripted{
		name: "openrc", path: path, mode: 0o755, render: openrcScript, run: run,
		enable:  [][]string{{"rc-update", "add", Name, "default"}},
		disable: [][]string{{"-rc-service", Name, "stop"}, {"rc-update", "delete", Name}},
		start:   [][]string{{"rc-service", Name, "start"}},
		stop:    [][]string{{"rc-service", Name, "stop"}},
		log:     "/var/log/" + Name + ".log",
		state: func(run func(...string) (string, error)) (State, string, error) {
			if _, err := run("rc-service", Name, "status"); err != nil {
				return Stopped, "", nil
			}
			return Running, "", nil
		},
	}
}

// openrcScript: what is in command_args is read by a shell once more.
func openrcScript(s Spec) (string, error) {
	user := ""
	if s.User != "" {
		user = "command_user=" + shell(s.User) + "\n"
	}
	return `#!/sbin/openrc-run
# ` + written + `

description=` + shell(description) + `
supervisor=supervise-daemon
command=` + shell(s.Program) + `
command_args=` + shell(shell(s.Args...)) + `
` + user + `respawn_delay=10
respawn_max=0
no_new_privs=yes
output_log=/var/log/` + Name + `.log
error_log=/var/log/` + Name + `.log

depend() {
	need net
	use dns logger
	after firewall
}
`, nil
}
