-- iottunnel behind nginx: visitors of LABEL.domain are passed to the node that
-- holds the device, agents to a node that has room. http.conf, server.conf and
-- agents.conf call what is here; README.md says how to set it up.
local answers = require "iottunnel.answers"
local check = require("iottunnel.config").check
local headers = require "iottunnel.headers"
local hints = require "iottunnel.hints"
local hosts = require "iottunnel.hosts"
local names = require "iottunnel.names"
local nodes = require "iottunnel.nodes"
local redis = require "iottunnel.redis"
local routes = require "iottunnel.routes"

local balancer -- ngx.balancer, which exists in workers alone
local error, ipairs, tonumber, tostring = error, ipairs, tonumber, tostring

local _M = {}

local DICTIONARIES = { routes = "iottunnel_routes", unknown = "iottunnel_unknown",
    state = "iottunnel_state" }

local ROOT, HEALTH = "/.iottunnel/", "/.iottunnel/health"

-- How many visitors of one worker may wait for a device to come back, and how
-- often they look, in seconds.
local WAITING_MOST, WAIT_STEP = 256, 0.1

-- After how long an agent for whom there is no node is looked after again, in
-- seconds: when the nodes have been read anew.
local NODES_AGAIN = 1

-- When to ask again, in seconds; as the edge says it.
local RETRY_OFFLINE, RETRY_SOON, RETRY_NODES = 10, 1, 3

-- How long a body may be that is kept until its request is answered: it has to fit
-- client_body_buffer_size.
local KEPT_BODY_BYTES = 16384

local config
local waiting = 0


-- setup is called once, in init_by_lua_block. What is wrong with it, or missing
-- from http {}, keeps nginx from starting, and is said in its error log.
function _M.setup(options)
    local checked = check(options)
    local dictionaries = {}
    for what, name in pairs(DICTIONARIES) do
        dictionaries[what] = ngx.shared[name]
        if not dictionaries[what] then
            error("iottunnel: setup: there is no lua_shared_dict " .. name
                .. ": include iottunnel/http.conf in http {}", 0)
        end
    end
    for _, server in ipairs(checked.servers) do
        if server.host then
            local why
            server.address, why = hosts.address(server.host)
            if not server.address then
                ngx.log(ngx.WARN, "iottunnel: setup: redis: ", server.host, ": ",
                    why, "; it is left to the `resolver` of http {}, if there is one")
            end
        end
    end
    redis.init(checked, dictionaries.state)
    nodes.init(checked, dictionaries.state)
    routes.init(checked, dictionaries)
    hints.init(checked, dictionaries.state)
    config = checked
end


-- ready ends a request that cannot be served for want of a setup, and else has
-- the worker look after nodes and hints.
local function ready()
    if not config then
        ngx.log(ngx.ERR, "iottunnel: there is no setup: call ",
            'init_by_lua_block { require("iottunnel").setup{ redis = ..., ',
            "domain = ... } } in http {}")
        return ngx.exit(ngx.HTTP_INTERNAL_SERVER_ERROR)
    end
    nodes.start()
    hints.start()
end


-- What a Host names, for those that have been asked for lately.
local read_hosts, read_count = {}, 0
local READ_MOST, READ_BYTES = 4096, 255


-- read_host returns the normal form of a Host, the label that it names, or nil, and
-- whether it is directly under the domain.
local function read_host(host)
    local h = read_hosts[host]
    if not h then
        h = { normal = names.normal(host), label = names.parse(host, config.domain),
            device = names.directly_under(host, config.domain) }
        if #host <= READ_BYTES then
            if read_count >= READ_MOST then
                read_hosts, read_count = {}, 0
            end
            read_hosts[host], read_count = h, read_count + 1
        end
    end
    return h
end


-- requested_host returns the Host that nginx has chosen its server by. It is
-- the Host header, unless the request's target names another one (RFC 9112
-- section 3.2.2): then that is what a node is told, too.
local function requested_host()
    local sent, chosen = ngx.var.http_host, ngx.var.host
    if sent and read_host(sent).normal == chosen then
        return sent
    end
    ngx.var.iottunnel_host = chosen
    return chosen
end


local function accept()
    return ngx.req.get_headers(0).accept
end


-- answer ends the request of a visitor.
local function answer(a)
    return answers.send(a, accept())
end


-- has_body reports whether the request brings one.
local function has_body()
    local length = ngx.var.http_content_length
    return length and length ~= "0" or ngx.var.http_transfer_encoding ~= nil
end


-- keep_body reads a short body before anything is sent to a node: so it can be sent
-- again if that node does not hold the device. Others go to the device as they come,
-- and go once.
local function keep_body()
    local length = tonumber(ngx.var.http_content_length)
    if length and length > 0 and length <= KEPT_BODY_BYTES then
        ngx.req.read_body()
    end
end


-- body_is_gone reports whether a body has been sent that cannot be sent again.
local function body_is_gone()
    local length = tonumber(ngx.var.http_content_length)
    return has_body() and not (length and length <= KEPT_BODY_BYTES)
end


-- await looks for a device that is expected back until it is there, for as long
-- as visitors wait.
local function await(label, route)
    if waiting >= WAITING_MOST then
        return route
    end
    waiting = waiting + 1
    local deadline = ngx.now() + config.wait_s
    while route and route.expected and ngx.now() < deadline do
        ngx.sleep(WAIT_STEP)
        route = routes.find(label) or route
    end
    waiting = waiting - 1
    return route
end


-- await_news waits until Redis says something else of a route that its node has
-- denied: that the device has left, which takes the node a moment to write, or that
-- it has come again.
local function await_news(label, denied)
    if not denied.online or waiting >= WAITING_MOST then
        return
    end
    waiting = waiting + 1
    local deadline = ngx.now() + config.wait_s
    local route = routes.find(label, true)
    while route and route.online and route.gen == denied.gen
        and route.node == denied.node and ngx.now() < deadline do
        ngx.sleep(WAIT_STEP)
        route = routes.find(label, true)
    end
    waiting = waiting - 1
end


-- destination notes where the balancer is to go. alone: and nowhere else.
local function destination(host, port, alone)
    local there = ngx.ctx.iottunnel
    there.host, there.port, there.alone = host, port, alone
end


-- lead sends the visitor to the device's node, or says why not. again: what is
-- known of the route does not count; gone: there is no body to send any more.
local function lead(label, again, gone)
    local route, err = routes.find(label, again)
    if route and route.expected and config.wait_s > 0 and not gone then
        route = await(label, route)
    end
    if route and route.online and gone then
        return answer { code = "unavailable", retry_after = RETRY_SOON,
            message = "the device has moved while the request was under way" }
    elseif not route then
        ngx.log(ngx.INFO, "iottunnel: no route: ", err)
        return answer { code = "unavailable", retry_after = RETRY_SOON }
    elseif route.unknown then
        return answer { code = "unknown_device" }
    end
    ngx.var.iottunnel_device = route.device
    if not route.online then
        return answer { code = "device_offline", retry_after = RETRY_OFFLINE,
            last_seen = route.seen }
    end
    ngx.var.iottunnel_node, ngx.var.iottunnel_gen = route.node, route.gen
    local host, port = route.host, route.port
    if not host then -- a name: nodes knows its address
        local node = nodes.find(route.node)
        if not node or node.internal ~= route.internal or not node.host then
            ngx.log(ngx.ERR, "iottunnel: node ", route.node, " has no internal ",
                "address that can be used: ", route.internal)
            return answer { code = "unavailable", retry_after = RETRY_SOON }
        end
        host, port = node.host, node.port
    end
    local other = nodes.is_down(host, port) and nodes.another(host, port)
    if other then
        host, port = other.host, other.port
    end
    return destination(host, port)
end


local function visitor(label)
    if not label then -- under the domain, and never leased
        return answer { code = "unknown_device" }
    end
    ngx.var.iottunnel_label = label
    ngx.ctx.iottunnel = { label = label }
    headers.clean(config.keep)
    for _, name in ipairs(config.drop_headers or {}) do
        ngx.req.clear_header(name)
    end
    if ngx.var.iottunnel_upgrade ~= "" and has_body() then
        -- The rest of the body would be read beside the other protocol.
        ngx.var.iottunnel_upgrade = ""
    end
    keep_body()
    return lead(label, false, false)
end


-- transfer sends a transfer socket to the node that its URL names.
local function transfer()
    local id = ngx.unescape_uri(ngx.var.arg_node or "")
    local node = nodes.find(id)
    if not node or not node.host then
        return answers.send({ code = "not_here" }, false)
    end
    ngx.var.iottunnel_node = node.id
    return destination(node.host, node.port, true)
end


-- health tells load balancers in front whether there is a node to pass anything to.
local function health()
    local node = nodes.for_agent()
    ngx.status = node and ngx.HTTP_OK or ngx.HTTP_SERVICE_UNAVAILABLE
    ngx.header["Content-Type"] = "text/plain; charset=utf-8"
    ngx.header["Cache-Control"] = "no-store"
    ngx.print(node and "ok\n" or "no node\n")
    return ngx.exit(ngx.HTTP_OK) -- the status has been sent
end


-- agent passes an agent on. Only what is written exactly as agents write it
-- gets past: no other spelling can become another path at a node.
local function agent()
    ngx.ctx.iottunnel = { agent = true }
    local path = ngx.var.request_uri:match("^[^?#]*")
    if path == HEALTH then
        return health()
    end
    if not path:find("^/%.iottunnel/v1/[a-z_]+$") then
        ngx.header["Iottunnel-Versions"] = "v1"
        return answers.send({ code = "upgrade_required",
            message = "versions served here: v1" }, false)
    end
    headers.clean(config.keep)
    if path == "/.iottunnel/v1/transfer" then
        return transfer()
    end
    local node = nodes.for_agent()
    if not node then
        ngx.sleep(NODES_AGAIN) -- they may be starting, like this nginx
        node = nodes.for_agent()
    end
    if not node then
        return answers.send({ code = "unavailable", retry_after = RETRY_NODES,
            message = "no node is there to take agents" }, false)
    end
    if path == "/.iottunnel/v1/control" then
        nodes.gave(node)
    end
    ngx.var.iottunnel_node = node.id
    return destination(node.host, node.port)
end


-- arrive begins with a request, and returns what its Host names.
local function arrive()
    ready()
    if config.before then
        config.before()
    end
    local host = requested_host()
    return read_host(host), names.under(host, config.domain)
end


-- access decides what becomes of a request in the server of the devices: server.conf
-- calls it in access_by_lua, after nginx's own access rules. Agents are served
-- there under other names.
function _M.access()
    local host, under = arrive()
    if host.device then
        return visitor(host.label)
    end
    if not under and ngx.var.request_uri:sub(1, #ROOT) == ROOT then
        return agent()
    end
    return answer { code = "unknown_device" }
end


-- agents is access for agents.conf: visitors are not served there, since what guards
-- devices stands in their own server.
function _M.agents()
    local _, under = arrive()
    if under then
        return answer { code = "unknown_device" }
    end
    return agent()
end


-- again is access for a request that a node has sent back with 421. The route
-- is read anew, once.
function _M.again()
    ready()
    local label = read_host(requested_host()).label
    if not label then -- of an agent's request: a node says so, too
        return answers.send({ code = "not_here" }, false)
    end
    ngx.ctx.iottunnel = { label = label }
    local gone = body_is_gone()
    if ngx.var.upstream_http_iottunnel_error ~= "not_here" then
        -- The device has said it. Whoever gets 421 may ask again by whatever
        -- method (RFC 9110 section 15.5.20), so its words are fetched again; with
        -- a body that has been sent they are lost.
        if gone then
            return ngx.exit(ngx.HTTP_CLOSE)
        end
        return lead(label, false, false)
    end
    local denied = routes.known(label)
    routes.forget(label)
    -- Another visitor may have read it anew meanwhile: nobody has denied that one.
    if not gone and denied and denied.node == ngx.var.iottunnel_node
        and denied.gen == ngx.var.iottunnel_gen then
        await_news(label, denied)
    end
    return lead(label, gone, gone)
end


-- attempt returns where to connect to for the nth time, from 0: to the chosen node
-- once more, because a kept connection may have been closing, and then to another
-- one, which passes the request on. One that does not even take a connection is
-- not asked again.
local function attempt(there, n)
    if n == 0 then
        balancer.set_more_tries(2)
        return there.host, there.port
    end
    local _, status = balancer.get_last_failure()
    if n == 1 and status ~= ngx.HTTP_GATEWAY_TIMEOUT or there.alone then
        return there.host, there.port
    end
    nodes.down(there.host, there.port)
    local other = there.agent and nodes.for_agent()
        or nodes.another(there.host, there.port) or there
    return other.host, other.port
end


-- balance connects to what access has chosen.
function _M.balance()
    balancer = balancer or require "ngx.balancer"
    local there = ngx.ctx.iottunnel
    if not there or not there.host then
        ngx.log(ngx.ERR, "iottunnel: no node was chosen for this request: ",
            "access_by_lua of server.conf did not run (`satisfy any` skips it)")
        return ngx.exit(ngx.HTTP_INTERNAL_SERVER_ERROR)
    end
    local tries = there.tries or 0
    there.tries = tries + 1
    local host, port = attempt(there, tries)
    local ok, err = balancer.set_current_peer(host, port)
    if not ok then
        ngx.log(ngx.ERR, "iottunnel: ", host, ":", port, ": ", tostring(err))
        return ngx.exit(ngx.HTTP_INTERNAL_SERVER_ERROR)
    end
end


-- replace has the answer under way be another one; body sends it.
local function replace(there, a)
    local status, fields, body = answers.render(a,
        not there.agent and accept(), ngx.req.get_method())
    for _, name in ipairs { "Content-Encoding", "Content-Range",
        "Content-Language", "ETag", "Last-Modified", "Trailer", "Set-Cookie",
        "Accept-Ranges", "Location" } do
        ngx.header[name] = nil
    end
    ngx.status = status
    for name, value in pairs(fields) do
        ngx.header[name] = value
    end
    there.body = body
end


-- from_node reports whether a node has answered; else nginx has, for want of
-- that.
local function from_node()
    local times = ngx.var.upstream_header_time
    return times and times:find("%d[^,:]*$") ~= nil
end


-- header looks at the head of an answer before it is sent.
function _M.header()
    local there = ngx.ctx.iottunnel
    if not there or not there.host then
        return -- an answer of ours, or of another location
    end
    if ngx.header["Iottunnel-Owner"] then
        ngx.header["Iottunnel-Owner"] = nil
        if there.label then
            routes.forget(there.label) -- the device is at another node
        end
    end
    local status = ngx.status
    if status < 421 then
        return
    end
    if status == 421 and there.label
        and ngx.var.upstream_http_iottunnel_error == "not_here" then
        return replace(there, { code = "device_offline",
            retry_after = RETRY_OFFLINE })
    end
    if (status == 502 or status == 504) and not from_node() then
        if there.label then
            routes.forget(there.label)
        end
        return replace(there, status == 504 and not there.agent
            and { code = "device_timeout" }
            or { code = "unavailable", retry_after = RETRY_SOON })
    end
end


-- body sends what header has put in place of an answer.
function _M.body()
    local there = ngx.ctx.iottunnel
    if there and there.body then
        if there.body ~= "" and ngx.req.get_method() ~= "HEAD" then
            ngx.arg[1] = there.body
            there.body = ""
        else
            ngx.arg[1] = nil
        end
    end
end


return _M
