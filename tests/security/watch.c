/* Writes down which names a process looks up and which addresses it connects to; LD_PRELOAD, WATCH_LOG. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static void note(const char *what, const char *which) {
    const char *path = getenv("WATCH_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) {
        fprintf(file, "%s %s\n", what, which);
        fclose(file);
    }
}

int connect(int fd, const struct sockaddr *to, socklen_t size) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    char text[INET6_ADDRSTRLEN] = "";
    if (to->sa_family == AF_INET) inet_ntop(AF_INET, &((const struct sockaddr_in *)to)->sin_addr, text, sizeof text);
    if (to->sa_family == AF_INET6) inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)to)->sin6_addr, text, sizeof text);
    if (text[0] && strncmp(text, "127.", 4) && strcmp(text, "::1")) note("connect", text);
    return real(fd, to, size);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    if (name && strncmp(name, "127.", 4) && strcmp(name, "localhost") && strcmp(name, "::1")) note("lookup", name);
    return real(name, service, hints, found);
}
