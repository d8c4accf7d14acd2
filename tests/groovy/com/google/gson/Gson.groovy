package com.google.gson

import groovy.json.JsonSlurper

/** Stand-in for the JSON library that QuPath brings: maps from JSON, an error for what is none. */
class Gson {
    def fromJson(String text, Class kind) {
        def value = new JsonSlurper().parseText(text)
        if (!(kind.isInstance(value)))
            throw new IllegalStateException("no " + kind)
        return value
    }
}
