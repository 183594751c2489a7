/* The module `_convmlp_jpeg`: a rectangle of a JPEG's pixels, cut out inside libjpeg-turbo.
 *
 * Columns outside of it are not transformed, rows above it are neither transformed nor converted, and decoding ends with
 * its last row. It is compiled where libjpeg-turbo's header is at hand (build_jpeg_crop.py), and used where its pixels
 * are those of simplejpeg (data_prep/images/jpeg_box.py).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "libjpeg-turbo 2.1 or newer is needed: jpeg_crop_scanline and jpeg_skip_scanlines"
#endif

#define TEXT_OF(value) #value
#define TEXT(value) TEXT_OF(value)
#define ROWS 16 /* read at a time */

typedef struct {
    struct jpeg_error_mgr base; /* first: libjpeg knows no more of it */
    jmp_buf escape;
    char message[JMSG_LENGTH_MAX];
} Errors;

typedef struct {
    unsigned int top, left, height, width;
} Rectangle;

/* libjpeg's own would end the process. */
static void give_up(j_common_ptr info) {
    Errors *errors = (Errors *)info->err;
    (*info->err->format_message)(info, errors->message);
    longjmp(errors->escape, 1);
}

/* A warning (a level below zero) is an error, as in simplejpeg's strict mode. */
static void judge(j_common_ptr info, int level) {
    if (level < 0) give_up(info);
}

static void refuse(j_decompress_ptr info, const char *reason) {
    Errors *errors = (Errors *)info->err;
    snprintf(errors->message, sizeof errors->message, "%s", reason);
    longjmp(errors->escape, 1);
}

/* Fills `out` (height, width, 3). Returns whether it could; if not, `errors->message` says why. */
static int decode(const unsigned char *content, size_t length, unsigned int eighths, Rectangle box, unsigned char *out,
                  Errors *errors) {
    struct jpeg_decompress_struct info;

    memset(&info, 0, sizeof info);
    info.err = jpeg_std_error(&errors->base);
    errors->base.error_exit = give_up;
    errors->base.emit_message = judge;
    if (setjmp(errors->escape)) {
        jpeg_destroy_decompress(&info);
        return 0;
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, content, (unsigned long)length);
    jpeg_read_header(&info, TRUE);
    if (info.num_components != 1 && info.num_components != 3) refuse(&info, "neither grey nor of three components");
    if (info.progressive_mode || info.comps_in_scan != info.num_components)
        refuse(&info, "of several scans, which are held in memory whole");
    info.out_color_space = JCS_RGB;
    info.dct_method = JDCT_IFAST;
    info.do_fancy_upsampling = FALSE;
    info.scale_num = eighths;
    info.scale_denom = 8;
    jpeg_start_decompress(&info);
    if (info.output_components != 3 || box.top >= info.output_height || box.height > info.output_height - box.top ||
        box.left >= info.output_width || box.width > info.output_width - box.left)
        refuse(&info, "the rectangle is not within the image");

    JDIMENSION first = box.left, across = box.width; /* libjpeg begins with the column of blocks that holds the edge */
    jpeg_crop_scanline(&info, &first, &across);
    JSAMPARRAY rows = (*info.mem->alloc_sarray)((j_common_ptr)&info, JPOOL_IMAGE, across * 3, ROWS);
    size_t before = (size_t)(box.left - first) * 3, row_bytes = (size_t)box.width * 3;
    unsigned char *place = out;
    if (box.top > 0) jpeg_skip_scanlines(&info, box.top);
    for (unsigned int done = 0; done < box.height;) {
        unsigned int wanted = box.height - done < ROWS ? box.height - done : ROWS;
        unsigned int read = jpeg_read_scanlines(&info, rows, wanted);
        if (read == 0) refuse(&info, "libjpeg gave no rows");
        for (unsigned int row = 0; row < read; row++, place += row_bytes)
            memcpy(place, rows[row] + before, row_bytes);
        done += read;
    }
    jpeg_destroy_decompress(&info);
    return 1;
}

static PyObject *crop(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_buffer content, out;
    Py_ssize_t top, left, height, width, eighths;
    if (!PyArg_ParseTuple(arguments, "y*w*nnnnn:crop", &content, &out, &top, &left, &height, &width, &eighths))
        return NULL;
    Errors errors;
    int is_done = 0;
    const Py_ssize_t most = JPEG_MAX_DIMENSION;
    if (top < 0 || left < 0 || height < 1 || width < 1 || top > most || left > most || height > most || width > most ||
        eighths < 1 || eighths > 8) {
        snprintf(errors.message, sizeof errors.message, "no rectangle or scale of a JPEG");
    } else if (out.len != height * width * 3) {
        snprintf(errors.message, sizeof errors.message, "out must have height * width * 3 bytes");
    } else {
        Rectangle box = {(unsigned int)top, (unsigned int)left, (unsigned int)height, (unsigned int)width};
        Py_BEGIN_ALLOW_THREADS
        is_done = decode(content.buf, (size_t)content.len, (unsigned int)eighths, box, out.buf, &errors);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&content);
    PyBuffer_Release(&out);
    if (!is_done) {
        PyErr_SetString(PyExc_ValueError, errors.message);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* The Python in data_prep/images/jpeg.py takes 25 us and three arrays of the file's length for it, this 8. */
static PyObject *first_marker(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_buffer content;
    Py_ssize_t start;
    if (!PyArg_ParseTuple(arguments, "y*n:first_marker", &content, &start)) return NULL;
    const unsigned char *bytes = content.buf;
    Py_ssize_t found = -1, last = content.len - 1; /* a marker has two bytes */
    while (start >= 0 && start < last) {
        const unsigned char *mark = memchr(bytes + start, 0xFF, (size_t)(last - start));
        if (mark == NULL) break;
        if (mark[1] != 0) {
            found = mark - bytes;
            break;
        }
        start = mark - bytes + 2;
    }
    PyBuffer_Release(&content);
    return PyLong_FromSsize_t(found);
}

static PyMethodDef methods[] = {
    {"first_marker", first_marker, METH_VARARGS,
     "first_marker(content, start)\n\n"
     "The place of the first 0xFF from start on that isn't followed by 0x00; -1: there is none."},
    {"crop", crop, METH_VARARGS,
     "crop(content, out, top, left, height, width, eighths)\n\n"
     "Fill out, height * width * 3 bytes, with the rectangle's RGB pixels of a baseline JPEG decoded at so many eighths\n"
     "of its size, by libjpeg's fast transform and upsampling. ValueError: an error, or a warning up to its last row."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_convmlp_jpeg",
                                        "A rectangle of a JPEG's pixels, cut out inside libjpeg-turbo.", 0, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__convmlp_jpeg(void) {
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddStringConstant(module, "LIBJPEG_TURBO", TEXT(LIBJPEG_TURBO_VERSION)) < 0)
        Py_CLEAR(module);
    return module;
}
